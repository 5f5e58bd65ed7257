"""Reads one file: its bytes, its text, or the rows of a table, by the format that its name ends in.

A row reader takes (file, text_field, errors, encoding) and yields what each row holds in the field of text: a string,
None where there is nothing, or anything else that the file holds there. No file is held in memory whole.

`datasets` is not used for local files: it takes strings such as "2020-01-01" for dates, "NA" for nothing and "007" for
7, reads a JSON list whole, does not give the line of an error and leaves lock files in the user's cache. The standard
library and pyarrow do none of that.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import sys
import textwrap
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, islice
from pathlib import Path

from slm.data.source import Piece, pieces_of, pieces_of_rows, unreadable
from slm.errors import UserError

BLOCK = 1 << 20  # bytes read at a time
UTF_8 = "utf-8"
LOOK_AHEAD = 32  # rows by which the field of text is chosen

# Names of fields that never hold the text unless the user chooses them.
_METADATA = re.compile(
    r"(.*[_-])?(id|ids|uuid|guid|url|uri|hash|md5|sha1|sha256|version|date|time|timestamp|created|updated|lang|language)"
    r"|[a-z0-9]+Id|index|key|split",
    re.IGNORECASE,
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS has not fetched

TEXT_SUFFIXES = (".txt", ".text", ".md")
OTHER_FORMATS = (".pdf", ".rtf", ".doc", ".docx", ".odt", ".epub", ".xlsx", ".zip", ".tar", ".bz2", ".xz", ".zst")
READABLE = "text (.txt, .text, .md), .jsonl, .ndjson, .json, .csv and .tsv, all also as .gz, and .parquet"


def suffix(file: Path) -> str:
    """The suffix that gives a file's format, in lower case; it may be followed by .gz."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def read_pieces(
    file: Path, text_field: str, errors: str, encoding: str = UTF_8, start: int = 0, end: int | None = None
) -> Iterator[Piece]:
    """The pieces of a file. start, end: the bytes to read of plain text; tables are read whole."""
    if rows := ROWS.get(suffix(file)):
        return pieces_of_rows(rows(file, text_field, errors, encoding), str(file))
    return pieces_of(read_text(file, errors, encoding, plain=True, start=start, end=end))


# --- Bytes and text ---


def read_bytes(
    file: Path, size: int = BLOCK, unpack: bool = True, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """The bytes of a file from `start` to `end`, `size` at a time; those of a .gz file decompressed, if `unpack`."""
    try:
        with gzip.open(file) if unpack and file.suffix.lower() == ".gz" else file.open("rb") as opened:
            opened.seek(start)
            while block := opened.read(size if end is None else min(size, end - start)):
                start += len(block)
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(str(file), error) from error


def read_text(
    file: Path,
    errors: str,
    encoding: str = UTF_8,
    plain: bool = False,
    size: int = BLOCK,
    start: int = 0,
    end: int | None = None,
) -> Iterator[str]:
    """The text of a file, a block at a time, without its byte order mark and with "\\n" for every line's end.

    plain: refuse a first block with zero bytes, as binary files have. start, end: the bytes to read.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translate=True)
    done, starts = start, start == 0  # done: bytes read
    for block in chain(read_bytes(file, size, start=start, end=end), (b"",)):
        if plain and encoding == UTF_8 and done == 0 and b"\0" in block:
            raise UserError(
                f"{file} does not look like text: byte {block.index(0):,} is zero; the formats are {READABLE}"
                " (for a text in UTF-16, pass --encoding utf-16)"
            )
        done += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            position = done - len(error.object) + error.start  # what is decoded may start before this block
            raise UserError(
                f"{file} is not {encoding.upper()}: byte {position:,} is 0x{error.object[error.start]:02x};"
                f" {_likely_encoding(error.object[error.start - 2000 if error.start > 2000 else 0 :][:20_000])}"
                "save it as UTF-8, or pass --errors replace"
            ) from error
        if text and starts:
            text, starts = text.removeprefix("\ufeff"), False
        if text:
            yield text


def _likely_encoding(sample: bytes) -> str:
    """What to pass for text that is not UTF-8, as the package charset-normalizer guesses; empty without it.

    A few bytes that are not ASCII are more likely damage than another encoding.
    """
    if sum(byte >= 0x80 for byte in sample) < 8:
        return ""
    try:
        from charset_normalizer import from_bytes
    except ModuleNotFoundError:
        return ""
    guess = from_bytes(sample).best()
    if guess is None or guess.encoding in ("utf_8", "ascii"):
        return ""
    return f"it looks like {guess.encoding}: pass --encoding {guess.encoding}, "


# --- JSON ---


def json_rows(file: Path, text_field: str, errors: str, encoding: str = UTF_8) -> Iterator[object]:
    """The rows of a JSON list, or of JSON lines."""
    return text_of_rows(_json_values(file, errors, encoding), text_field, str(file))


def _json_values(file: Path, errors: str, encoding: str) -> Iterator[object]:
    """The values of a JSON list, or JSON values one after another, which is what JSON lines are."""
    between, between_in_list = re.compile(r"[ \t\n\r]*"), re.compile(r"[ \t\n\r,]*")
    text, line = "", 1  # text: not parsed yet; it begins on this line
    in_list: bool | None = None  # not known before the first character
    needed = 0  # characters of text below which it is not worth parsing
    for block in chain(read_text(file, errors, encoding), ("",)):
        text += block
        if block and len(text) < needed:
            continue
        at = 0
        while True:
            gap = (between_in_list if in_list else between).match(text, at)
            at = gap.end() if gap else at
            if at == len(text):
                break
            if (in_list is None and text[at] == "[") or (in_list and text[at] == "]"):
                in_list = not in_list
                at += 1
                continue
            in_list = bool(in_list)
            found = _json_value(text, at, is_last=not block, file=file, first_line=line)
            if found is None:
                break
            value, at = found
            yield value
        needed = 2 * (len(text) - at)  # a value longer than a block is not tried again at every block
        line += text.count("\n", 0, at)
        text = text[at:]
    if in_list:
        raise _malformed(file, line, "the list has no end: the file was cut short")


def _json_value(text: str, at: int, *, is_last: bool, file: Path, first_line: int) -> tuple[object, int] | None:
    """The JSON value that begins at text[at], and where it ends; None where it may continue in the next block.

    is_last: there is no next block. first_line: number of the line that `text` begins on.
    """
    try:
        return json.JSONDecoder().raw_decode(text, at)  # a number may be cut, but rows are no numbers
    except json.JSONDecodeError as error:
        # Where more text follows, an error near the end, or a string without an end, may be a cut, not a mistake.
        if not is_last and (error.pos > len(text) - 16 or error.msg.startswith("Unterminated")):
            return None
        problem = error.msg.removesuffix(" at").removesuffix(" starting")
        raise _malformed(file, first_line + error.lineno - 1, problem) from error
    except (ValueError, RecursionError) as error:  # Python limits both
        problem = "a number has too many digits, or too many brackets are open"
        raise _malformed(file, first_line + text.count("\n", 0, at), problem) from error


# --- CSV and TSV ---


def csv_rows(file: Path, text_field: str, errors: str, encoding: str = UTF_8) -> Iterator[object]:
    """The rows of a table of values separated by commas, in .tsv files by tabs, whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)  # the most that Windows takes; the default is 128 kB
    rows = csv.reader(
        _lines(read_text(file, errors, encoding)),
        delimiter="\t" if suffix(file) == ".tsv" else ",",
        skipinitialspace=True,
        strict=True,
    )
    count = lacking = 0
    line = 1  # where a row begins, which may be long before the end of an open quotation
    try:
        header = next((row for row in rows if row), [])
        column = header.index(choose_field(text_field, header, header, (), str(file))) if header else 0
        line = rows.line_num + 1
        for row in rows:
            if len(row) > len(header):
                problem = f"{len(row)} values under {len(header)} names: put text with a delimiter in quotes"
                raise _malformed(file, line, problem)
            if row:  # not a blank line
                count += 1
                lacking += column >= len(row)
            yield row[column] if column < len(row) else None
            line = rows.line_num + 1
    except csv.Error as error:
        raise _malformed(file, line, str(error)) from error
    if lacking:
        _report_lacking(lacking, count, header[column], str(file))


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


# --- Parquet ---


def parquet_rows(file: Path, text_field: str, errors: str, encoding: str = UTF_8) -> Iterator[object]:
    """The rows of a Parquet file; its strings are always UTF-8: `errors` and `encoding` do not matter."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Without these two options the column is read at once for a row group, which may be the whole file.
        with parquet.ParquetFile(file, buffer_size=BLOCK, pre_buffer=False) as opened:
            schema = opened.schema_arrow
            strings = [field.name for field in schema if str(field.type) in ("string", "large_string", "string_view")]
            others = [
                field.name for field in schema if pa.types.is_nested(field.type) or pa.types.is_dictionary(field.type)
            ]
            column = choose_field(text_field, schema.names, strings, others, str(file))
            for batch in opened.iter_batches(batch_size=256, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(str(file), error) from error


# The row reader of each suffix; a file with any other suffix is read as plain text.
ROWS: dict[str, Callable[[Path, str, str, str], Iterator[object]]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".parquet": parquet_rows,
}


# --- The field of text ---


def text_of_rows(rows: Iterable[object], text_field: str, where: str) -> Iterator[object]:
    """What the rows hold in their field of text, None where a row has none; a row that is no object is itself the text.

    The field is chosen by the first LOOK_AHEAD rows. Rows without it are left out and counted on stderr.
    where: names the rows for the user. Raises UserError where the field is not clear, or most rows lack it.
    """
    rows = iter(rows)
    first = list(islice(rows, LOOK_AHEAD))
    objects = [row for row in first if isinstance(row, dict)]
    column: str | None = None
    count = lacking = 0
    for row in chain(first, rows):
        if not isinstance(row, dict):
            yield row
            continue
        if column is None:
            column = _field_of_objects(text_field, objects or [row], where)
        elif column != text_field and text_field in row:
            problem = f"the first rows of {where} have no field {text_field!r}, but a later one has"
            raise UserError(f"{problem}: choose it, or {column!r}, with --text_field")
        count += 1
        lacking += column not in row
        yield row.get(column)
    _report_lacking(lacking, count, column, where)


def _report_lacking(lacking: int, count: int, column: str | None, where: str) -> None:
    """Print how many rows have no field `column`. Raises UserError where most have none."""
    if 2 * lacking > count:
        lost = f"{lacking:,} of {count:,} rows of {where} have no field {column!r}"
        raise UserError(f"{lost}; choose the field that they have with --text_field, or mend those rows")
    if lacking:
        _note(f"{lacking:,} of {count:,} rows of {where} have no field {column!r} and are left out")


def _field_of_objects(text_field: str, rows: Sequence[dict[str, object]], where: str) -> str:
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(type(value))
    strings = [name for name, found in kinds.items() if found <= {str, type(None)} and str in found]
    others = [name for name, found in kinds.items() if found & {str, list, dict} and name not in strings]
    if len(rows) == 1 and text_field not in kinds:
        inside = [
            name
            for name, value in rows[0].items()
            if isinstance(value, list) and any(isinstance(item, dict) for item in value)
        ]
        if inside:
            raise UserError(
                f"no field {text_field!r} in the only object of {where}; its rows are in the field {inside[0]!r}:"
                " save that list as a file of its own"
            )
    return choose_field(text_field, kinds, strings, others, where)


def choose_field(
    text_field: str, names: Collection[str], strings: Collection[str], others: Collection[str], where: str
) -> str:
    """`text_field`, or, where nobody chose one, the only field that could hold the text.

    strings: the fields of strings. others: those of lists, objects and the like, which could also be meant. A field
    whose name is that of an identifier or of metadata, such as doc_id or url, never holds the text unless it is chosen.
    Raises UserError, with the names, where the field is not clear.
    """
    if text_field in names:
        return text_field
    possible = [name for name in strings if not _METADATA.fullmatch(name)]
    if text_field == "text" and len(possible) == 1 and not any(not _METADATA.fullmatch(name) for name in others):
        _note(f"the text of {where} is in its field {possible[0]!r}")
        return possible[0]
    has = ", ".join(textwrap.shorten(name, 40, placeholder="...") for name in list(names)[:20])
    raise UserError(f"no field {text_field!r} in {where}; it has: {has}; choose one with --text_field")


@cache
def _note(line: str) -> None:
    """Print a line to stderr, once: a text is read several times."""
    print(f"note: {line}", file=sys.stderr)


def _malformed(file: Path, line: int, problem: str) -> UserError:
    return UserError(f"{file}, line {line:,}, is malformed: {problem}; mend or delete that line")
