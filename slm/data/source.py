"""A source: a text that can be read again and again, as a stream of documents in pieces.

A document is what the end of text, `<|endoftext|>`, separates: a story, a row of a table, or a whole file. A piece is a
document, or a part of a long one, so that no document of plain text has to fit into memory.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import NamedTuple

from slm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
ROW_LIMIT = 1 << 26  # characters of a row, and of white space in a row; other text is cut before it is that long

# Where a long document is cut, in characters from the start of a piece: at a blank line from LEAST on, at any white
# space from LONG on, anywhere at MOST.
LEAST, LONG, MOST = 2_048, 16_384, 65_536
# A cut is made before a run of white space and never inside one, so the tokens of the pieces are those of the whole:
# GPT-2's pattern starts a new word there in any case. (\x1c to \x1f are white space to Python, but not to GPT-2.)
_SPACE = re.compile(r"(?<!\s)[^\S\x1c-\x1f]")
_PARAGRAPH = re.compile(r"(?<!\s)(?=[^\S\x1c-\x1f])[^\S\n]*\n[^\S\n]*\n")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")  # fifty times faster than _PARAGRAPH at finding that there is none


class Piece(NamedTuple):
    """A document, or a part of a long one: the texts of its pieces joined are the document's text."""

    text: str  # never empty, never contains END_OF_TEXT
    ends_document: bool  # False: the same document continues in the next piece


@dataclass(frozen=True)
class Source:
    """A text that can be read again and again.

    `pieces()` raises UserError where the text cannot be read, or where there is none.
    """

    description: str  # for the user, such as "2 files, 13.9 MB: a.txt, b.txt"
    fingerprint: str  # hex; a different one whenever `pieces` would yield a different text
    size_bytes: int | None  # approximate size of the text in UTF-8; None: unknown
    pieces: Callable[[], Iterator[Piece]]
    # The same text as consecutive sources of about the given number of bytes each, some of which may hold no text;
    # an empty list where it has no more bytes than that.
    parts: Callable[[int], list[Source]] | None = None  # None: it can only be read as a whole


def pieces_of(blocks: Iterable[str], where: str = "the text") -> Iterator[Piece]:
    """The pieces of a text that arrives in blocks of any length, which may end anywhere.

    Raises UserError where more than ROW_LIMIT of white space follows a text: it may or may not be the document's end.
    where: names the text for the user.
    """
    rest, starts_document = "", True
    space: list[str] = []  # blocks of white space that follow `rest`
    for block in chain(blocks, (END_OF_TEXT,)):
        if block.isspace():
            if rest:
                space.append(block)
                if len(space) * len(block) > ROW_LIMIT and sum(map(len, space)) > ROW_LIMIT:
                    raise UserError(f"{where} has {ROW_LIMIT >> 20} MB of white space in a row: remove it")
            continue
        *documents, rest = "".join([rest, *space, block]).split(END_OF_TEXT)
        space = []
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
        # White space at the end may turn out to be the document's last, and END_OF_TEXT may have begun: neither is cut.
        sure = len(rest[: 1 - len(END_OF_TEXT)].rstrip())
        start = 0
        while sure - start > MOST:
            end = _cut(rest, start, sure)
            yield Piece(rest[start:end], False)
            start, starts_document = end, False
        rest = rest[start:]


def _cut(text: str, start: int, end: int) -> int:
    """Where the piece of text[:end] that begins at `start` ends; the character before `end` is not white space."""
    least, long, most = start + LEAST, min(start + LONG, end), min(start + MOST, end)
    cut = _BLANK_LINE.search(text, least, long) and _PARAGRAPH.search(text, least, long)
    cut = cut or _SPACE.search(text, start + LONG, most)
    return cut.start() if cut else most


def pieces_of_rows(rows: Iterable[object], where: str) -> Iterator[Piece]:
    """The pieces of rows of text, each a document of its own; a row of None is skipped. where: names the rows.

    Raises UserError where a row holds something else.
    """
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            yield from pieces_of([row.replace("\r\n", "\n").replace("\r", "\n") if "\r" in row else row])
        elif row is not None:
            problem = f"row {number:,} of {where} holds a value of type {type(row).__name__}, not text"
            raise UserError(f"{problem}: fix that row, or choose another field with --text_field")


def not_empty(pieces: Iterable[Piece], description: str) -> Iterator[Piece]:
    """These pieces. Raises UserError where there is none."""
    empty = True
    for piece in pieces:
        empty = False
        yield piece
    if empty:
        raise UserError(f"no text in {description}: only white space, {END_OF_TEXT} or empty rows; give a longer text")


def digest(*facts: object) -> hashlib.blake2b:
    """A hash of these facts, to which bytes can be added: a source's fingerprint."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=16)


@cache
def note(line: str) -> None:
    """Print a line to stderr, once: a text is read several times."""
    print(f"note: {line}", file=sys.stderr)


def unreadable(name: str, error: Exception) -> UserError:
    """What the user reads about a file or folder that cannot be read."""
    denied = isinstance(error, PermissionError)
    mend = "give yourself permission to read it" if denied else "make sure that it is complete and named correctly"
    return UserError(f"cannot read {name}: {reason(error)}; {mend}")


def reason(error: Exception) -> str:
    """The first line of what an exception says."""
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror
    return message.splitlines()[0].rstrip(".")
