"""Text in, a stream of documents out: from files, a folder, a Hugging Face hub data set or the built-in stories.

No file is held in memory whole, and no document of plain text. `datasets` reads the hub only: in local files it takes
strings such as "2020-01-01" for dates, "NA" for nothing and "007" for 7, it reads a JSON list whole, cannot tell the
line of an error and leaves lock files in the user's cache; the standard library and pyarrow do none of that.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import glob
import gzip
import hashlib
import io
import json
import logging
import os
import re
import textwrap
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from slm.data import stories
from slm.errors import UserError
from slm.files import user_path

END_OF_TEXT = "<|endoftext|>"
TINY_STORIES = "roneneldan/TinyStories"
BLOCK = 1 << 20  # bytes read at a time

# Where a long document is cut, in characters from the start of a piece: at a blank line from LEAST on, at any white
# space from LONG on, anywhere at MOST.
LEAST, LONG, MOST = 2_048, 16_384, 65_536
# A cut is made before a run of white space and never inside one, so the tokens of the pieces are those of the whole:
# GPT-2's pattern starts a new word there in any case. (\x1c to \x1f are white space to Python, but not to GPT-2.)
_SPACE = re.compile(r"(?<!\s)[^\S\x1c-\x1f]")
_PARAGRAPH = re.compile(r"(?<!\s)(?=[^\S\x1c-\x1f])[^\S\n]*\n[^\S\n]*\n")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")  # tells fifty times faster than _PARAGRAPH that there is none

_TEXT_SUFFIXES = (".txt", ".text", ".md")
_OTHER_FORMATS = (".pdf", ".rtf", ".doc", ".docx", ".odt", ".epub", ".xlsx", ".zip", ".tar", ".bz2", ".xz", ".zst")
_READABLE = "text (.txt, .text, .md), .jsonl, .ndjson, .json, .csv and .tsv, all also as .gz, and .parquet"


class Piece(NamedTuple):
    """A document, or a part of a long one: the texts of its pieces joined are the document's text."""

    text: str  # never empty, never contains END_OF_TEXT
    ends_document: bool  # False: the same document goes on in the next piece


@dataclass(frozen=True)
class Source:
    """A text that can be read again and again.

    `pieces()` raises UserError where the text cannot be read, or where there is none.
    """

    description: str  # for the user, such as "2 files, 13.9 MB: a.txt, b.txt"
    fingerprint: str  # hex; another one whenever `pieces` would give another text
    size_bytes: int | None  # about the bytes of text in UTF-8; None: not known
    pieces: Callable[[], Iterator[Piece]]
    # The same text as sources one after another, of about so many bytes each, which may have no text of their own; none
    # where it has no more bytes than that.
    parts: Callable[[int], list[Source]] | None = None  # None: it can only be read as a whole


def open_source(dataset: str, *, text_field: str = "text", errors: str = "strict", held_out: bool = False) -> Source:
    """Find `dataset`: a path, a glob, `stories`, `stories:N`, `tinystories` or the hub's owner/name, a path first.

    text_field: the field or column of JSON, CSV, parquet and hub data sets that holds the text.
    errors: "strict", "replace" or "ignore" for bytes that are not UTF-8.
    held_out: the text is to measure a model: the validation split where the hub has one, built-in stories of their own.

    Raises UserError where there is no such data set, or its files cannot be read. A hub data set is first looked for by
    `pieces()`.
    """
    if errors not in ("strict", "replace", "ignore"):
        raise UserError(f"errors is {errors!r}: choose strict, replace or ignore")
    try:
        if _is_local(dataset):
            return _files_source(_find_files(dataset), text_field, errors)
        if dataset == "stories" or dataset.startswith("stories:"):
            return _stories_source(dataset, seed=int(held_out))
        if name := _hub_name(dataset):
            split = _hub_validation(name) if held_out else None
            return _hub_source(name, split or "train", text_field)
        raise _missing(dataset)
    except OSError as error:
        raise _unreadable(dataset, error) from error


def validation_source(dataset: str, *, text_field: str = "text", errors: str = "strict") -> Source | None:
    """The validation split that `dataset` itself has; None for files, built-in stories and where it has none.

    Raises UserError where the hub cannot be asked for the splits; `tinystories` is not asked for.
    """
    name = None if _is_local(dataset) else _hub_name(dataset)
    if name is None:
        return None
    split = _hub_validation(name)
    return _hub_source(name, split, text_field) if split else None


# --- Pieces: text of any length, in blocks of any length ---


def _pieces(blocks: Iterable[str]) -> Iterator[Piece]:
    """The documents of a text that comes in blocks, wherever the blocks are cut."""
    rest, starts_document = "", True
    for block in chain(blocks, (END_OF_TEXT,)):
        *documents, rest = (rest + block).split(END_OF_TEXT)
        for document in documents:
            text = (document.lstrip() if starts_document else document).rstrip()
            start = 0
            while start < len(text):
                end = _cut(text, start, len(text))
                yield Piece(text[start:end], end == len(text))
                start = end
            starts_document = True
        if starts_document:
            rest = rest.lstrip()
        # White space at the end may prove to be the document's last, and a marker may have begun: neither is cut yet.
        sure = len(rest[: 1 - len(END_OF_TEXT)].rstrip())
        start = 0
        while sure - start > MOST:
            end = _cut(rest, start, sure)
            yield Piece(rest[start:end], False)
            start, starts_document = end, False
        rest = rest[start:]


def _cut(text: str, start: int, end: int) -> int:
    """The end of the piece of text[:end] that begins at `start`; `end` follows a character that is no white space."""
    least, long, most = start + LEAST, min(start + LONG, end), min(start + MOST, end)
    cut = _BLANK_LINE.search(text, least, long) and _PARAGRAPH.search(text, least, long)
    cut = cut or _SPACE.search(text, start + LONG, most)
    return cut.start() if cut else most


def _documents(rows: Iterable[object], where: str) -> Iterator[Piece]:
    """The pieces of rows of text; a row of None is left out. where: names the rows for the user."""
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            yield from _pieces([row.replace("\r\n", "\n").replace("\r", "\n") if "\r" in row else row])
        elif row is not None:
            problem = f"row {number:,} of {where} holds a value of type {type(row).__name__}, not text"
            raise UserError(f"{problem}: mend that row, or choose another field with --text_field")


def _not_empty(pieces: Iterable[Piece], description: str) -> Iterator[Piece]:
    piece = None
    for piece in pieces:
        yield piece
    if piece is None:
        raise UserError(f"no text in {description}: only white space, {END_OF_TEXT} or empty rows; give a longer text")


# --- Files ---


def _is_local(dataset: str) -> bool:
    return user_path(dataset).exists() or any(c in dataset for c in "*?[")


def _find_files(dataset: str) -> list[Path]:
    """The files of an existing path or of a glob, at least one, in a fixed order."""
    path = user_path(dataset)
    if path.is_dir() and dataset:
        files = _walk(path)
        if not files:
            raise UserError(f"nothing to read in the folder {dataset}: the formats are {_READABLE}")
    elif path.is_file():
        files = [path]
    elif path.exists():
        raise UserError(f"{dataset!r} is neither a file nor a folder: give the path of one")
    else:
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())  # noqa: PTH207
        if not files:
            raise UserError(f"no file matches {dataset}: mend the pattern, or give a folder")
    for file in files:
        if (suffix := _suffix(file)) in _OTHER_FORMATS:
            raise UserError(f"cannot read {file}: {suffix} is not among the formats, which are {_READABLE}")
    return files


def _walk(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise error

    files = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if _suffix(file) in (*_TEXT_SUFFIXES, *_ROWS) and file.is_file())


def _suffix(file: Path) -> str:
    """The suffix that tells the format, which may stand before .gz."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _files_source(files: list[Path], text_field: str, errors: str) -> Source:
    root = os.path.commonpath([file.parent for file in files])
    names = [file.relative_to(root).as_posix() for file in files]
    stamps = {file: _stamp(file) for file in files}
    sizes = [size for size, _ in stamps.values()]
    digest = _digest("files", names, sizes, text_field, errors)
    for file in files:
        for block in _read(file, unpack=False):
            digest.update(block)
    count = "1 file" if len(files) == 1 else f"{len(files):,} files"
    more = [] if len(names) <= 3 else [f"{len(names) - 3:,} more"]
    description = f"{count}, {_size(sum(sizes))}: {', '.join(names[:3] + more)}"

    def pieces() -> Iterator[Piece]:
        found = chain.from_iterable(_file_pieces(file, text_field, errors) for file in files)
        return _not_empty(_unchanged(found, stamps), description)

    def parts(size: int) -> list[Source]:
        if sum(sizes) <= size:
            return []
        spans = [span for file in files for span in _spans(file, size)]
        return [_part(group, text_field, errors, stamps) for group in _groups(spans, size)]

    return Source(description, digest.hexdigest(), None if _packed(files) else sum(sizes), pieces, parts)


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _unchanged(pieces: Iterable[Piece], stamps: Mapping[Path, tuple[int, int]]) -> Iterator[Piece]:
    """The pieces of files that must not change meanwhile: their fingerprint was taken when they had these stamps."""
    yield from pieces
    for file, stamp in stamps.items():
        if not file.exists() or _stamp(file) != stamp:
            raise UserError(f"{file} changed while it was read: run again")


def _packed(files: Iterable[Path]) -> bool:
    return any(file.suffix.lower() in (".gz", ".parquet") for file in files)


class _Span(NamedTuple):
    """Bytes of a file that hold whole documents."""

    file: Path
    start: int
    end: int | None  # None: to the end of the file
    size: int
    digest: bytes  # of the bytes and their format, wherever they lie


def _spans(file: Path, size: int) -> Iterator[_Span]:
    """A file, cut at the first end of a document after each `size` bytes where it is plain text."""
    kind, length = (_suffix(file), file.suffix.lower()), file.stat().st_size

    def span(start: int, end: int | None) -> _Span:
        digest = _digest("span", kind, start == 0)
        for block in _read(file, unpack=False, start=start, end=end):
            digest.update(block)
        return _Span(file, start, end, (length if end is None else end) - start, digest.digest())

    start = 0
    for border in range(size, length, size) if kind[0] not in _ROWS and kind[1] != ".gz" else ():
        if border > start:
            end = _end_of_document(file, border)
            if end is None:
                break
            yield span(start, end)
            start = end
    yield span(start, None)


def _end_of_document(file: Path, start: int) -> int | None:
    """Where in `file` the first END_OF_TEXT that begins at or behind `start` ends."""
    marker, text = END_OF_TEXT.encode(), b""
    for block in _read(file, start=start):
        text += block
        if (found := text.find(marker)) >= 0:
            return start + found + len(marker)
        start += max(0, len(text) - len(marker))
        text = text[-len(marker) :]
    return None


def _groups(spans: Iterable[_Span], size: int) -> Iterator[list[_Span]]:
    """Small spans in groups of about `size` bytes.

    A group ends after a span with the chance of that span's share of `size`, as its digest says: so a span that is
    added or changed changes the group that it comes into, and no other.
    """
    group: list[_Span] = []
    for span in spans:
        group.append(span)
        if int.from_bytes(span.digest[:8], "little") / 2**64 < span.size / size:
            yield group
            group = []
    if group:
        yield group


def _part(spans: list[_Span], text_field: str, errors: str, stamps: Mapping[Path, tuple[int, int]]) -> Source:
    fingerprint = _digest("part", [span.digest for span in spans], text_field, errors).hexdigest()

    def pieces() -> Iterator[Piece]:
        found = chain.from_iterable(_file_pieces(s.file, text_field, errors, s.start, s.end) for s in spans)
        return _unchanged(found, {span.file: stamps[span.file] for span in spans})

    size = None if _packed(span.file for span in spans) else sum(span.size for span in spans)
    return Source(str(spans[0].file), fingerprint, size, pieces)


def _file_pieces(file: Path, text_field: str, errors: str, start: int = 0, end: int | None = None) -> Iterator[Piece]:
    if rows := _ROWS.get(_suffix(file)):
        return _documents(rows(file, text_field, errors), str(file))
    return _pieces(_text(file, errors, plain=True, start=start, end=end))


def _read(
    file: Path, size: int = BLOCK, unpack: bool = True, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """The bytes of a file from `start` to `end`, `size` at a time, decompressed where it ends in .gz."""
    try:
        with gzip.open(file) if unpack and file.suffix.lower() == ".gz" else file.open("rb") as opened:
            opened.seek(start)
            while block := opened.read(size if end is None else min(size, end - start)):
                start += len(block)
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(str(file), error) from error


def _text(
    file: Path, errors: str, plain: bool = False, size: int = BLOCK, start: int = 0, end: int | None = None
) -> Iterator[str]:
    """The text of a file in UTF-8, a block at a time, without its byte order mark and with "\\n" for every line's end.

    plain: refuse bytes of zero in the first block, as binary files have. start, end: the bytes to read.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(errors), translate=True)
    done, starts = start, start == 0  # done: bytes read
    for block in chain(_read(file, size, start=start, end=end), (b"",)):
        if plain and done == 0 and b"\0" in block:
            raise UserError(
                f"{file} does not look like text: byte {block.index(0):,} is zero; the formats are {_READABLE}"
                " (a text in UTF-16 has to be saved as UTF-8)"
            )
        done += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            position = done - len(error.object) + error.start  # what is decoded may start before this block
            raise UserError(
                f"{file} is not UTF-8: byte {position:,} is 0x{error.object[error.start]:02x};"
                " save it as UTF-8, or pass --errors replace"
            ) from error
        if text and starts:
            text, starts = text.removeprefix("\ufeff"), False
        if text:
            yield text


def _json_rows(file: Path, text_field: str, errors: str) -> Iterator[object]:
    return _field(_json_values(file, errors), text_field, str(file))


def _json_values(file: Path, errors: str) -> Iterator[object]:
    """The values of a JSON list, or JSON values one after another, which is what JSON lines are."""
    decode = json.JSONDecoder().raw_decode
    between, between_in_list = re.compile(r"[ \t\n\r]*"), re.compile(r"[ \t\n\r,]*")
    text, line, wanted = "", 1, 0  # text: not read yet, from this line on
    in_list: bool | None = None  # not known before the first character
    for block in chain(_text(file, errors), ("",)):
        text += block
        if block and len(text) < wanted:
            continue
        at = 0
        while (gap := (between_in_list if in_list else between).match(text, at)) and (at := gap.end()) < len(text):
            if (in_list is None and text[at] == "[") or (in_list and text[at] == "]"):
                in_list, at = not in_list, at + 1
                continue
            in_list = bool(in_list)
            try:
                value, end = decode(text, at)  # a number may be cut, but rows are no numbers
            except json.JSONDecodeError as error:
                # Where text goes on, what is near its end, or a string without an end, may be cut rather than wrong.
                if block and (error.pos > len(text) - 16 or error.msg.startswith("Unterminated")):
                    break
                problem = error.msg.removesuffix(" at").removesuffix(" starting")
                raise _malformed(file, line + error.lineno - 1, problem) from error
            except (ValueError, RecursionError) as error:  # Python limits both
                problem = "a number has too many digits, or too many brackets are open"
                raise _malformed(file, line + text.count("\n", 0, at), problem) from error
            yield value
            at = end
        wanted = 2 * (len(text) - at)  # a value longer than a block is not tried again at every block
        line += text.count("\n", 0, at)
        text = text[at:]
    if in_list:
        raise _malformed(file, line, "the list has no end: the file was cut short")


def _csv_rows(file: Path, text_field: str, errors: str) -> Iterator[object]:
    csv.field_size_limit(2**31 - 1)  # the most that Windows takes; the default is 128 kB
    rows = csv.reader(_lines(_text(file, errors)), delimiter="\t" if _suffix(file) == ".tsv" else ",", strict=True)
    line = 1  # where a row begins, which may be long before the end of an open quotation
    try:
        header = next((row for row in rows if row), [])
        column = header.index(_choose_field(text_field, header, header, str(file))) if header else 0
        line = rows.line_num + 1
        for row in rows:
            if len(row) > len(header):
                problem = f"{len(row)} values under {len(header)} names: put text with a delimiter in quotes"
                raise _malformed(file, line, problem)
            yield row[column] if column < len(row) else None
            line = rows.line_num + 1
    except csv.Error as error:
        raise _malformed(file, line, str(error)) from error


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _parquet_rows(file: Path, text_field: str, errors: str) -> Iterator[object]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Without these two the column is read at once for a row group, which may be the whole file.
        with parquet.ParquetFile(file, buffer_size=BLOCK, pre_buffer=False) as opened:
            schema = opened.schema_arrow
            strings = [field.name for field in schema if str(field.type) in ("string", "large_string", "string_view")]
            column = _choose_field(text_field, schema.names, strings, str(file))
            for batch in opened.iter_batches(batch_size=256, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(str(file), error) from error


# What a suffix other than text's is read with: (file, text_field, errors) -> the rows' texts.
_ROWS: dict[str, Callable[[Path, str, str], Iterator[object]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _field(rows: Iterable[object], text_field: str, where: str) -> Iterator[object]:
    """What stands in the rows' field of text, None where a row has none; a row that is no object is itself the text."""
    column = None
    for row in rows:
        if isinstance(row, dict):
            if column is None:
                strings = [name for name, value in row.items() if isinstance(value, str)]
                column = _choose_field(text_field, row, strings, where)
            elif column != text_field and text_field in row:
                problem = f"the first row of {where} has no field {text_field!r}, but a later one has"
                raise UserError(f"{problem}: choose it, or {column!r}, with --text_field")
            yield row.get(column)
        else:
            yield row


def _choose_field(text_field: str, names: Collection[str], strings: Collection[str], where: str) -> str:
    """`text_field`, or the only field of strings where nobody chose one."""
    if text_field in names:
        return text_field
    if text_field == "text" and len(strings) == 1:
        return next(iter(strings))
    has = ", ".join(textwrap.shorten(name, 40, placeholder="...") for name in list(names)[:20])
    raise UserError(f"no field {text_field!r} in {where}; it has: {has}; choose one with --text_field")


# --- Built-in stories and the hub ---


def _stories_source(dataset: str, seed: int) -> Source:
    number = dataset.partition(":")[2] if ":" in dataset else "10000"
    if not re.fullmatch("0*[1-9][0-9]*", number):
        raise UserError(f"cannot write {number!r} stories: give a whole number from 1 on, as in stories:10000")
    count = int(number)
    description = f"built-in stories ({count:,})"
    fingerprint = _digest("stories", count, seed, stories.fingerprint()).hexdigest()
    return Source(description, fingerprint, None, lambda: _documents(stories.stories(count, seed), description))


def _hub_name(dataset: str) -> str | None:
    """The hub's name for `dataset`, None where that looks like a path, as data/story.txt or folder/anything does."""
    if dataset == "tinystories":
        return TINY_STORIES
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", dataset) or Path(dataset).parent.is_dir():
        return None
    return None if _suffix(Path(dataset)) in (*_TEXT_SUFFIXES, *_ROWS, *_OTHER_FORMATS) else dataset


def _hub_source(name: str, split: str, text_field: str) -> Source:
    description = f"hub data set {name}, split {split}"

    def rows() -> Iterator[object]:
        with _hub_errors(name):
            yield from _load(name, split=split)

    def pieces() -> Iterator[Piece]:
        return _not_empty(_documents(_field(rows(), text_field, description), description), description)

    return Source(description, _digest("hub", name, split, text_field).hexdigest(), None, pieces)


def _hub_validation(name: str) -> str | None:
    """The name of a hub data set's validation split; `tinystories` is known to have one and not asked for it."""
    if name == TINY_STORIES:
        return "validation"
    with _hub_errors(name):
        splits = list(_load(name))
    return next((split for split in ("validation", "valid", "val") if split in splits), None)


def _load(name: str, **options: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    _knock()
    return datasets.load_dataset(name, streaming=True, **options)


def _knock() -> None:
    """Ask the hub once whether it is there: where it is not, `load_dataset` would try again for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:  # chosen by the user; `load_dataset` knows what is in the cache
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:
        raise UserError(f"the hub does not answer ({_reason(error)})") from error


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn whatever goes wrong with the hub, for which there are many exceptions, into a UserError."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"cannot read {name} from the hub, and there is no such path here: {_reason(error)};"
            " download a text file elsewhere and pass its path, or pass --dataset stories"
        ) from error


# --- Words for the user ---


def _missing(dataset: str) -> UserError:
    path = user_path(dataset)
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    names += ["stories", "tinystories"] if path.name == dataset else []
    close = [str(path.parent / name) for name in difflib.get_close_matches(path.name, names)]
    mend = f"did you mean {' or '.join(close)}?" if close else "give the path of a text, or pass --dataset stories"
    return UserError(f"no file or folder {dataset}: {mend}")


def _unreadable(file: str, error: Exception) -> UserError:
    denied = isinstance(error, PermissionError)
    mend = "give yourself the right to read it" if denied else "make sure that it is whole and that its name is right"
    return UserError(f"cannot read {file}: {_reason(error)}; {mend}")


def _malformed(file: Path, line: int, problem: str) -> UserError:
    return UserError(f"{file}, line {line:,}, is malformed: {problem}; mend or delete that line")


def _reason(error: Exception) -> str:
    """An exception's first line."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return reason.splitlines()[0].rstrip(".")


def _size(size: float) -> str:
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000:
        size, unit = size / 1000, next(units)
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"


def _digest(*facts: object) -> hashlib.blake2b:
    return hashlib.blake2b(repr(facts).encode(), digest_size=16)
