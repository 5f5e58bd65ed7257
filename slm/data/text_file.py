"""One file: its bytes, decompressed, and its text, block by block. No file is held in memory whole."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from slm.data.source import ROW_LIMIT, note, unreadable
from slm.errors import UserError

BLOCK = 1 << 20  # bytes read at a time
UTF_8 = "utf-8"
TEXT_SUFFIXES = (".txt", ".text", ".md")
PACKED = (".gz", ".zst")  # suffixes of compressed files, whose format is in the suffix before
READABLE = (
    "text (.txt, .text, .md), .jsonl, .ndjson, .json, .csv and .tsv, all also as .gz or .zst, .parquet and .arrow"
)

_BYTE_ORDER_MARKS = {  # the longest first: that of UTF-16 begins as that of UTF-32 does
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: UTF_8,
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class File(Protocol):
    """A file to read: a path, or a file of the hub, of which there is a copy here. str() names it for the user."""

    @property
    def name(self) -> str:
        """The last part of its path."""

    def open(self, mode: str, /) -> Any:
        """The file, open for reading its bytes in order, with the mode "rb"."""

    def __fspath__(self) -> str:
        """The path of the copy, for a library that opens it itself."""


def suffix(file: File) -> str:
    """The suffix that gives a file's format, in lower case; it may be followed by .gz or .zst."""
    return Path(re.sub(r"\.(gz|zst)$", "", file.name.lower())).suffix


def read_bytes(file: File, unpack: bool = True, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from `start` to `end`, BLOCK at a time; of packed files decompressed, if `unpack`."""
    try:
        packed_as = Path(file.name).suffix.lower() if unpack else ""
        with file.open("rb") as packed, _unpacked(packed, packed_as) as opened:
            if start:
                opened.seek(start)
            while block := opened.read(BLOCK if end is None else min(BLOCK, end - start)):
                start += len(block)
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(str(file), error) from error


def _unpacked(file: Any, packed_as: str) -> Any:
    if packed_as == ".gz":
        return gzip.open(file)
    if packed_as == ".zst":
        import pyarrow  # it is there for Parquet, and notices where a stream was cut short

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd")
    return file


def read_text(file: File, errors: str, encoding: str = UTF_8, start: int = 0, end: int | None = None) -> Iterator[str]:
    """The text of a file, a block at a time, without its byte order mark and with "\\n" for every line's end.

    A byte order mark decides on the encoding. Zero bytes are refused where they are many, as in binary files; single
    ones are errors as others are. start, end: the bytes to read.
    """
    blocks = read_bytes(file, start=start, end=end)
    first = b""
    for block in blocks:
        first += block
        if len(first) >= 4:
            break
    if start == 0:
        encoding = marked_encoding(first) or encoding
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translate=True)
    is_wide, done, starts = encoding.startswith(("utf-16", "utf-32")), start, start == 0  # done: bytes read
    for block in chain([first], blocks, [b""]):
        if not is_wide and b"\0" in block:
            _check_zeros(file, block, done, errors, encoding)
        done += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_decoded(file, error, done, encoding) from error
        if text and starts:
            text, starts = text.removeprefix("\ufeff"), False
        if "\0" in text:
            if errors == "strict":
                raise UserError(f"{file} has zeros for characters, which no text has: is it {encoding.upper()}?")
            text = text.replace("\0", "\ufffd" if errors == "replace" else "")
        if text:
            yield text


def marked_encoding(start: bytes) -> str:
    """The encoding of a text that starts with these bytes, by its byte order mark; empty without one."""
    return next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "")


def _check_zeros(file: File, block: bytes, done: int, errors: str, encoding: str) -> None:
    """Refuse a block with zero bytes, unless they are few and `errors` says how to read them.

    done: bytes before the block.
    """
    text = block.decode(encoding, errors="replace")
    zero = done + block.index(0)
    if 20 * (text.count("\0") + text.count("\ufffd")) > len(text):
        if wide := _wide_encoding(block[:20_000]):
            raise UserError(f"{file} looks like {wide} without a byte order mark: pass --encoding {wide}")
        raise UserError(
            f"{file} does not look like text: byte {zero:,} is zero; the formats are {READABLE}"
            " (for text in another encoding, pass --encoding)"
        )
    if errors == "strict":
        raise UserError(f"byte {zero:,} of {file} is zero, which no text has: delete it, or pass --errors replace")
    note(f"zero bytes in {file} are {'read as U+FFFD' if errors == 'replace' else 'left out'}")


def _wide_encoding(sample: bytes) -> str:
    """The encoding of two or four bytes a character in which this is text with white space or ASCII; empty if none."""
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        text = sample.decode(encoding, errors="replace")
        odd = sum(character in "\0\ufffd" or not (character.isprintable() or character.isspace()) for character in text)
        plain = sum(" " <= character <= "~" or character in "\r\n\t" for character in text)
        if plain and 100 * odd <= len(text):
            return encoding
    return ""


def _not_decoded(file: File, error: UnicodeDecodeError, done: int, encoding: str) -> UserError:
    """What the user reads about bytes that are not in `encoding`. done: bytes read."""
    position = done - len(error.object) + error.start  # what is decoded may start before the last block
    sample = error.object[max(0, error.start - 2000) :][:20_000]
    wrong = sample.decode(encoding, errors="replace").count("\ufffd")
    guess = _likely_encoding(sample) if wrong >= 8 else ""
    if guess:
        mend = f"{guess}, save it as UTF-8, or name another --encoding"
    elif 100 * wrong > len(sample) and wrong >= 8:  # replacing all these would destroy the text
        mend = "save it as UTF-8, or pass its --encoding"
    else:
        mend = "save it as UTF-8, or pass --errors replace"
    return UserError(
        f"{file} is not {encoding.upper()}: byte {position:,} is 0x{error.object[error.start]:02x}; {mend}"
    )


def _likely_encoding(sample: bytes) -> str:
    """What to do about text in the encoding that the package charset-normalizer guesses; empty where it finds none.

    It confuses the one-byte encodings of Europe. So cp1252, by far the most common, is always named if it is possible,
    with a word by which the user can tell which one is right.
    """
    try:
        from charset_normalizer import from_bytes
    except ModuleNotFoundError:
        return ""
    guesses = from_bytes(sample)
    best = guesses.best()
    if best is None or best.encoding in ("utf_8", "ascii"):
        return ""
    likely = best.encoding
    if any("cp1252" in guess.could_be_from_charset for guess in guesses):
        for word in sample.split():
            as_1252, as_likely = (word.decode(name, errors="replace")[:20] for name in ("cp1252", likely))
            if as_1252 != as_likely:
                choice = f"cp1252 ({as_1252}) or {likely} ({as_likely})"
                return f"it looks like {choice}: pass the --encoding that reads right"
        likely = "cp1252"
    return f"it looks like {likely}: pass --encoding {likely}"


def malformed(file: File, line: int, problem: str) -> UserError:
    """What the user reads about a line that breaks the rules of its format."""
    return UserError(f"{file}, line {line:,}, is malformed: {problem}; fix or delete that line")


def too_long(where: str) -> UserError:
    """What the user reads about a row that is too long to be held in memory. where: the row and its file."""
    return UserError(f"{where} is longer than {ROW_LIMIT >> 20} MB: divide it into rows, or save its text as .txt")
