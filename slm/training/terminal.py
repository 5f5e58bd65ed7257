"""What a terminal can do that a pipe or a file cannot: wrap at words, cut to its width, and show text dim."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import unicodedata

LABEL = 11  # columns of what stands before a line's text
LONGEST_WORD = 20  # columns that are given up so as not to cut a word


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size().columns


def indent() -> str:
    """The space under a label, less of it in a narrow terminal."""
    return " " * (LABEL if width() >= 40 else 2)


def dim(text: str) -> str:
    """`text`, dim where standard output is a terminal that can show it so."""
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return text if plain else f"\033[2m{text}\033[0m"


def wrapped(text: str) -> str:
    """`text` with lines that a terminal would break within words broken between them; in a pipe it stays as it is."""
    if not sys.stdout.isatty():
        return text
    return "\n".join(line for long in text.split("\n") for line in _wrap(long))


def _wrap(line: str) -> list[str]:
    if sum(map(_columns, line)) <= width() or len(line) <= LABEL or "\033" in line:  # what is dim has been cut
        return [line]
    under = indent() if line[LABEL - 1] == " " else ""
    return textwrap.wrap(
        line, width(), subsequent_indent=under, break_long_words=False, break_on_hyphens=False, tabsize=1
    )


def cut(text: str, columns: int) -> str:
    """`text` as one line of at most `columns`, 5 or more: cut after a word, and without control characters."""
    columns = max(columns, 5)
    line = " ".join("".join(map(_shown, text)).split())
    if sum(map(_columns, line)) <= columns:
        return line
    room, end = columns - 4, 0
    while room >= _columns(line[end]):
        room -= _columns(line[end])
        end += 1
    words = line[: end + 1].rpartition(" ")[0]
    return f"{words if words and end - len(words) <= LONGEST_WORD else line[:end]} ..."


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    return "" if unicodedata.category(letter) == "Cf" else " "  # Cf: joins letters, or turns their direction


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
