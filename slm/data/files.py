"""Local files as a source: a path, a folder or a glob -> the files, their text, and the parts of a large text.

A part is made of spans: bytes of a file that hold whole documents. Its fingerprint follows from their content alone, so
that what was made of a part is found again in a text that has grown elsewhere.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from slm.data.readers import (
    LFS_POINTER,
    OTHER_FORMATS,
    READABLE,
    ROWS,
    TEXT_SUFFIXES,
    UTF_8,
    read_bytes,
    read_pieces,
    suffix,
)
from slm.data.source import END_OF_TEXT, Piece, Source, digest, not_empty
from slm.errors import UserError
from slm.files import user_path

ROWS_VERSION = "rows 2"  # raise it when rows would give another text
# Files of a folder that are about its texts, or that a training run wrote: read only where there are no others.
_NOT_TEXT = re.compile(r"(readme|license|licence)\b|(metrics\.csv|samples\.jsonl)$", re.IGNORECASE)

Stamp = tuple[int, int]  # of a file: its size in bytes, and when it was changed, in nanoseconds


def is_local(dataset: str) -> bool:
    """Whether `dataset` is an existing path, or a glob."""
    return user_path(dataset).exists() or any(character in dataset for character in "*?[")


def files_source(dataset: str, text_field: str, errors: str, encoding: str = UTF_8) -> Source:
    """The text of the files that the path, folder or glob `dataset` names.

    Raises UserError where there is no such file, or none that can be read, and OSError where the system refuses.
    """
    files, left_out = _find_files(dataset)
    root = os.path.commonpath([file.parent for file in files])
    names = [file.relative_to(root).as_posix() for file in files]
    stamps = {file: _stamp(file) for file in files}
    sizes = [size for size, _ in stamps.values()]
    how = [] if encoding == UTF_8 else [encoding]
    if any(suffix(file) in ROWS for file in files):
        how.append(ROWS_VERSION)
    hashed = digest("files", names, sizes, text_field, errors, *how)
    for file in files:
        for number, block in enumerate(read_bytes(file, unpack=False)):
            if number == 0 and block.startswith(LFS_POINTER):
                raise UserError(f"{file} is a Git LFS pointer, not the text itself: run git lfs pull in its folder")
            hashed.update(block)
    count = "1 file" if len(files) == 1 else f"{len(files):,} files"
    more = [] if len(names) <= 3 else [f"{len(names) - 3:,} more"]
    description = f"{count}, {_size(sum(sizes))}: {', '.join(names[:3] + more)}"
    if left_out:
        more = [] if len(left_out) <= 3 else [f"{len(left_out) - 3:,} more"]
        description += f"; left out: {', '.join([file.name for file in left_out[:3]] + more)}"

    def pieces() -> Iterator[Piece]:
        found = chain.from_iterable(read_pieces(file, text_field, errors, encoding) for file in files)
        return not_empty(_unchanged(found, stamps), description)

    def parts(size: int) -> list[Source]:
        if sum(sizes) <= size or encoding != UTF_8:  # the ends of text are looked for as bytes
            return []
        spans = [span for file in files for span in _spans(file, size)]
        return [_part(group, text_field, errors, stamps) for group in _groups(spans, size)]

    return Source(description, hashed.hexdigest(), None if _packed(files) else sum(sizes), pieces, parts)


# --- Finding files ---


def _find_files(dataset: str) -> tuple[list[Path], list[Path]]:
    """The files of an existing path or of a glob, at least one, in a fixed order, and those of a folder left out."""
    path = user_path(dataset)
    left_out: list[Path] = []
    if path.is_dir() and dataset:
        found = _walk(path)
        files = [file for file in found if not _NOT_TEXT.match(file.name)] or found
        left_out = sorted(set(found) - set(files))
        if not files:
            pattern = 'to read other files as text, quote a pattern, such as "folder/**/*.py"'
            raise UserError(f"nothing to read in the folder {dataset}: the formats are {READABLE}; {pattern}")
    elif path.is_file():
        files = [path]
    elif path.exists():
        raise UserError(f"{dataset!r} is neither a file nor a folder: give the path of one")
    else:
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())  # noqa: PTH207
        if not files:
            raise UserError(f"no file matches {dataset}: mend the pattern, or give a folder")
    for file in files:
        if suffix(file) in OTHER_FORMATS:
            raise UserError(f"cannot read {file}: {suffix(file)} is not among the formats, which are {READABLE}")
    return files, left_out


def _walk(folder: Path) -> list[Path]:
    """The files in `folder` and below with a format that can be read, but for hidden ones."""

    def fail(error: OSError) -> None:
        raise error

    files = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if suffix(file) in (*TEXT_SUFFIXES, *ROWS) and file.is_file())


def _stamp(file: Path) -> Stamp:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _unchanged(pieces: Iterable[Piece], stamps: Mapping[Path, Stamp]) -> Iterator[Piece]:
    """The pieces of files that must not change meanwhile: their fingerprint was taken when they had these stamps."""
    yield from pieces
    for file, stamp in stamps.items():
        if not file.exists() or _stamp(file) != stamp:
            raise UserError(f"{file} changed while it was read: run again")


def _packed(files: Iterable[Path]) -> bool:
    """Whether the size of one of these files does not tell how much text it holds."""
    return any(file.suffix.lower() in (".gz", ".parquet") for file in files)


def _size(size: float) -> str:
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.1f}".removesuffix(".0") + f" {units[0]}"


# --- Parts of a large text ---


class _Span(NamedTuple):
    """Bytes of a file that hold whole documents."""

    file: Path
    start: int
    end: int | None  # None: to the end of the file
    size: int
    digest: bytes  # of the bytes and their format, wherever they are


def _spans(file: Path, size: int) -> Iterator[_Span]:
    """The spans of a file: plain text is cut at the first end of a document after each `size` bytes."""
    length = file.stat().st_size
    start = 0
    if suffix(file) not in ROWS and not _packed([file]):
        for border in range(size, length, size):
            if border > start:
                end = _end_of_document(file, border)
                if end is None:
                    break
                yield _span(file, start, end, end - start)
                start = end
    yield _span(file, start, None, length - start)


def _span(file: Path, start: int, end: int | None, size: int) -> _Span:
    version = [ROWS_VERSION] if suffix(file) in ROWS else []
    hashed = digest("span", (suffix(file), file.suffix.lower()), start == 0, *version)
    for block in read_bytes(file, unpack=False, start=start, end=end):
        hashed.update(block)
    return _Span(file, start, end, size, hashed.digest())


def _end_of_document(file: Path, start: int) -> int | None:
    """Where in `file` the first END_OF_TEXT that begins at `start` or later ends."""
    marker, text = END_OF_TEXT.encode(), b""
    for block in read_bytes(file, start=start):
        text += block
        if (found := text.find(marker)) >= 0:
            return start + found + len(marker)
        start += max(0, len(text) - len(marker))
        text = text[-len(marker) :]
    return None


def _groups(spans: Iterable[_Span], size: int) -> Iterator[list[_Span]]:
    """Small spans in groups of about `size` bytes.

    A group ends after a span with a probability of that span's share of `size`, decided by its digest: so a span that
    is added or changed changes the group it falls into, and no other.
    """
    group: list[_Span] = []
    for span in spans:
        group.append(span)
        if int.from_bytes(span.digest[:8], "little") / 2**64 < span.size / size:
            yield group
            group = []
    if group:
        yield group


def _part(spans: list[_Span], text_field: str, errors: str, stamps: Mapping[Path, Stamp]) -> Source:
    fingerprint = digest("part", [span.digest for span in spans], text_field, errors).hexdigest()

    def pieces() -> Iterator[Piece]:
        found = chain.from_iterable(read_pieces(s.file, text_field, errors, UTF_8, s.start, s.end) for s in spans)
        return _unchanged(found, {span.file: stamps[span.file] for span in spans})

    size = None if _packed(span.file for span in spans) else sum(span.size for span in spans)
    return Source(str(spans[0].file), fingerprint, size, pieces)
