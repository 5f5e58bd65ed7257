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

from slm.data.readers import LFS_POINTER, OTHER_FORMATS, ROWS, read_file
from slm.data.source import END_OF_TEXT, Piece, Source, digest, not_empty
from slm.data.text_file import PACKED, READABLE, TEXT_SUFFIXES, UTF_8, marked_encoding, read_bytes, suffix
from slm.errors import UserError
from slm.files import user_path

ROWS_VERSION = "rows 3"  # raise it when rows would give another text
# Files of a folder that are about its texts or belong to a model, or that a training run wrote: read only where there
# are no others.
_NOT_TEXT = re.compile(
    r"(readme|license|licence)\b|(metrics\.csv|samples\.jsonl|merges\.txt"
    r"|(((generation_|tokenizer_)?config|tokenizer|vocab|vocabulary|special_tokens_map|checksums|dataset_infos?)\.json))$",
    re.IGNORECASE,
)
_SAVED = re.compile(
    r"(state|dataset_info|dataset_dict)\.json|cache-.*\.arrow"
)  # beside what datasets.save_to_disk wrote
VALIDATION = ("validation", "valid", "val", "dev")  # names of a split for validation
_SPLITS = {"train": "train", "training": "train", "test": "test", **dict.fromkeys(VALIDATION, "validation")}
_EVALUATION = dict.fromkeys(("eval", "evaluation"), "validation")  # so they mean only beside a "train"
_NO_MEANING = ("of", "data", "dataset", "set", "split", "part", "shard")  # words that may stand beside those

Stamp = tuple[int, int]  # of a file: its size in bytes, and when it was changed, in nanoseconds


def is_local(dataset: str) -> bool:
    """Whether `dataset` is an existing path, or a glob."""
    return user_path(dataset).exists() or any(character in dataset for character in "*?[")


def files_source(dataset: str, text_field: str, errors: str, encoding: str = UTF_8, held_out: bool = False) -> Source:
    """The text of the files that the path, folder or glob `dataset` names.

    held_out: only the files of a folder that are for validation, if it has any; they are never among the others.
    Raises UserError where there is no such file, or none that can be read, and OSError where the system refuses.
    """
    files, validation, left_out = _find_files(dataset)
    if held_out and validation:
        files, left_out = validation, []
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
    fields = dict.fromkeys(read_file(file, text_field, errors, encoding).field for file in files)
    if any(fields):
        description += f"; field: {', '.join(filter(None, fields))}"
    if left_out:
        more = [] if len(left_out) <= 3 else [f"{len(left_out) - 3:,} more"]
        description += f"; left out: {', '.join([file.name for file in left_out[:3]] + more)}"

    return _source(stamps, description, hashed.hexdigest(), text_field, errors, encoding)


def source_of_texts(files: Iterable[Path], description: str, fingerprint: str) -> Source:
    """The text of plain files in UTF-8, of which `fingerprint` says which they are."""
    return _source({file: _stamp(file) for file in files}, description, fingerprint, "text", "strict", UTF_8)


def _source(
    stamps: Mapping[Path, Stamp], description: str, fingerprint: str, text_field: str, errors: str, encoding: str
) -> Source:
    def pieces() -> Iterator[Piece]:
        found = chain.from_iterable(read_file(file, text_field, errors, encoding).pieces for file in stamps)
        return not_empty(_unchanged(found, stamps), description)

    def parts(size: int) -> list[Source]:
        if total <= size or encoding != UTF_8:  # the ends of text are looked for as bytes
            return []
        spans = [span for file in stamps for span in _spans(file, size)]
        return [_part(group, text_field, errors, stamps) for group in _groups(spans, size)]

    total = sum(size for size, _ in stamps.values())
    return Source(description, fingerprint, None if _packed(stamps) else total, pieces, parts)


# --- Finding files ---


def has_validation_files(dataset: str) -> bool:
    """Whether the path or glob `dataset` is a folder in which the names of files say that they are for validation."""
    return bool(_find_files(dataset)[1])


def _find_files(dataset: str) -> tuple[list[Path], list[Path], list[Path]]:
    """The files of an existing path or of a glob, at least one, in a fixed order; of a folder also those that are for
    validation, and all that are left out of the first.
    """
    path = user_path(dataset)
    validation: list[Path] = []
    left_out: list[Path] = []
    if path.is_dir() and dataset:
        found = _once(_walk(path))
        if not found:
            pattern = 'to read other files as text, quote a pattern, such as "folder/**/*.py"'
            raise UserError(f"nothing to read in the folder {dataset}: the formats are {READABLE}; {pattern}")
        texts = [file for file in found if not _NOT_TEXT.match(file.name)] or found
        files, validation, test = _divide(texts, path)
        left_out = validation + test + sorted(set(found) - set(texts))
    elif path.is_file():
        files = [path]
    elif path.exists():
        raise UserError(f"{dataset!r} is neither a file nor a folder: give the path of one")
    else:
        files = _once(file for file in _matching(path) if file.is_file())
        if not files:
            raise UserError(f"no file matches {dataset}: fix the pattern, or give a folder")
    for file in files:
        if suffix(file) in OTHER_FORMATS:
            raise UserError(f"cannot read {file}: {suffix(file)} is not among the formats, which are {READABLE}")
    return files, validation, left_out


def _divide(files: list[Path], folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The files of `folder` to train on, to validate with and to test with, by their names and those of subfolders."""
    words = {file: [_words(part) for part in _names(file.relative_to(folder))] for file in files}
    divided = any("train" in map(_SPLITS.get, (part[0], part[-1])) for parts in words.values() for part in parts)
    splits: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for file, parts in words.items():
        named = [_split(part, divided, number < len(parts) - 1) for number, part in enumerate(parts)]
        splits[next(filter(None, named), "train")].append(file)
    return (splits["train"], splits["validation"], splits["test"]) if splits["train"] else (files, [], [])


def _names(file: Path) -> tuple[str, ...]:
    """The names of the folders that lead to `file`, and its own without the suffixes of its format."""
    return (*file.parts[:-1], Path(re.sub(r"\.(gz|zst)$", "", file.name)).stem)


def _words(name: str) -> list[str]:
    """The words of `name` in lower case, without numbers; an empty one if there is none."""
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if word and word not in _NO_MEANING]
    return words or [""]


def _split(words: list[str], divided: bool, is_folder: bool) -> str:
    """The split that these words of a name say; empty where they may mean anything else, such as "test drive".

    divided: other names say train.
    """
    if divided:
        splits = _SPLITS | _EVALUATION
        return splits.get(words[0]) or splits.get(words[-1], "")
    sure = words[-1] in ("validation", "valid") or (len(words) == 1 and not (is_folder and words[0] in ("dev", "test")))
    return _SPLITS.get(words[-1], "") if sure else ""


def _walk(folder: Path) -> Iterator[Path]:
    """The files in `folder` and below with a format that can be read, but for hidden ones."""
    for parent, names in _folders(folder):
        saved = "dataset_info.json" in names or "dataset_dict.json" in names
        for name in names:
            is_text = suffix(Path(name)) in (*TEXT_SUFFIXES, *ROWS) and not name.startswith(".")
            if is_text and not (saved and _SAVED.fullmatch(name)) and Path(parent, name).is_file():
                yield Path(parent, name)


def _folders(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """`folder` and those below that are not hidden, with the names in them; of several links to a folder one."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
        else:
            seen.add(real)
            yield parent, names


def _matching(pattern: Path) -> Iterator[Path]:
    """What matches a glob, some of it perhaps twice; unlike glob's own, ** ends where links lead in a circle."""
    parts = pattern.parts
    if "**" not in parts:
        yield from map(Path, glob.glob(str(pattern)))  # noqa: PTH207
        return
    at = parts.index("**")
    for root in _matching(Path(*parts[:at])) if at else [Path()]:
        for folder, _ in _folders(root) if root.is_dir() else ():
            yield from _matching(Path(glob.escape(folder), *(parts[at + 1 :] or ["*"])))


def _once(files: Iterable[Path]) -> list[Path]:
    """These files in order, of several links to a file one."""
    return sorted({os.path.realpath(file): file for file in sorted(files, reverse=True)}.values())


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
    """Whether the size of one of these files does not show how much text it holds."""
    return any(file.suffix.lower() in (*PACKED, ".parquet", ".arrow") for file in files)


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
    marked = marked_encoding(next(read_bytes(file, end=4), b""))
    if suffix(file) not in ROWS and not _packed([file]) and marked in ("", UTF_8):
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
        texts = (read_file(span.file, text_field, errors, start=span.start, end=span.end) for span in spans)
        return _unchanged(
            chain.from_iterable(text.pieces for text in texts), {span.file: stamps[span.file] for span in spans}
        )

    size = None if _packed(span.file for span in spans) else sum(span.size for span in spans)
    return Source(str(spans[0].file), fingerprint, size, pieces)
