"""The rows of tables of values separated by commas, semicolons, tabs or bars."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from slm.data.fields import Rows, choose_field, columns, is_field_name, text_of_rows
from slm.data.source import ROW_LIMIT, note
from slm.data.text_file import BLOCK, UTF_8, File, malformed, read_text, suffix, too_long

DELIMITERS = ",;\t|"
ONE_COLUMN = "\x1f"  # the delimiter of a table with a single column
LOOK_AHEAD = 200  # lines by which the delimiter is chosen


def csv_rows(file: File, text_field: str, errors: str, encoding: str = UTF_8) -> Rows:
    """The rows of a table whose first line names the columns; a single column may do without a name."""
    csv.field_size_limit(2**31 - 1)  # the most that Windows takes; the default is 128 kB
    lines = _Lines(read_text(file, errors, encoding), file)
    first = lines.look_ahead()
    delimiter = "\t" if suffix(file) == ".tsv" else ","
    if declared := re.fullmatch(r"sep=(.)\n", first[0] if first else ""):  # as Excel begins a file
        delimiter = declared[1]
        next(lines)
        lines.next_row()
    else:
        delimiter = _delimiter(first, text_field, delimiter)
    records = _records(lines, delimiter, file)
    header = [name.strip() for name in next(records, [])]
    if not header:
        return text_of_rows((), text_field, str(file))
    if delimiter == ONE_COLUMN and text_field == "text" and not is_field_name(header[0]):
        note(f"the first row of {file} is taken as text, not as the name of its only column")
        return text_of_rows((row[0] for row in chain([header], records)), text_field, str(file))
    names = [name for name in header if name]
    fields = choose_field(text_field, names, names, (), str(file))
    places = {name: header.index(name) for name in columns(fields)}
    texts = (
        {name: row[place] for name, place in places.items() if place < len(row)}
        for row in _of_width(records, len(header), lines, file)
    )
    return text_of_rows(texts, text_field, str(file), fields)


class _Lines(Iterator[str]):
    """The lines of a text with their ends. Raises UserError where those of one row are longer than ROW_LIMIT."""

    def __init__(self, blocks: Iterable[str], file: File) -> None:
        self._lines = self._split(blocks)
        self._file = file
        self.line = 0  # lines read
        self.row = 1  # the line that a row begins on
        self.length = 0  # characters of it

    def __next__(self) -> str:
        line = next(self._lines)
        while line == "\n" and not self.length:  # a blank line between rows
            self.line += 1
            self.row += 1
            line = next(self._lines)
        self.line += 1
        self.length += len(line)
        if self.length > ROW_LIMIT:
            raise too_long(f"the row of {self._file} that begins on line {self.row:,}")
        return line

    def look_ahead(self) -> list[str]:
        """The first lines, about BLOCK characters of them at most; they are read again."""
        first: list[str] = []
        length = 0
        while length < BLOCK and len(first) < LOOK_AHEAD and (line := next(self._lines, "")):
            first.append(line)
            length += len(line)
        self._lines = chain(first, self._lines)
        return [line[:BLOCK] for line in first]

    def next_row(self) -> None:
        """Note that the row which the lines so far belong to is complete."""
        self.row, self.length = self.line + 1, 0

    def _split(self, blocks: Iterable[str]) -> Iterator[str]:
        rest: list[str] = []  # of a line that is longer than a block
        length = 0
        for block in blocks:
            *lines, last = block.split("\n")
            if lines:
                lines[0] = "".join([*rest, lines[0]])
                rest, length = [], 0
            for line in lines:
                yield line + "\n"
            rest.append(last)
            length += len(last)
            if length > ROW_LIMIT:  # refused when it is asked for
                yield "".join(rest)
                rest, length = [], 0
        if length:
            yield "".join(rest)


def _records(lines: _Lines, delimiter: str, file: File) -> Iterator[list[str]]:
    """The rows without blank ones. Raises UserError where one breaks the rules of quotation."""
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            problem = str(error).replace(f"'{delimiter}' expected after '\"'", "text follows the end of a quotation")
            raise malformed(file, lines.row, problem) from error
        if row is None:
            return
        if row and row != [""]:
            yield [delimiter.join(row)] if delimiter == ONE_COLUMN else row
        lines.next_row()


def _of_width(rows: Iterable[list[str]], width: int, lines: _Lines, file: File) -> Iterator[list[str]]:
    """These rows, which have at most `width` values; empty ones at the end do not count."""
    for row in rows:
        if any(value.strip() for value in row[width:]):
            problem = f"{len(row)} values under {width} names: put text with a delimiter in quotes"
            raise malformed(file, lines.row, problem)
        yield row


def _delimiter(lines: list[str], text_field: str, usual: str) -> str:
    """The delimiter of a table that begins with these lines; ONE_COLUMN where its header has none.

    The header must have it, and as many rows as possible must have as many values as the header has. Where that does
    not decide, the one does that makes more of the header names of fields, and then the one with more columns.
    """
    best, best_rank = ONE_COLUMN, (0.0, 0, 0, False)
    for delimiter in DELIMITERS:
        rows = [row for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row and row != [""]]
        if not rows or len(rows[0]) < 2:
            continue
        header = [name.strip() for name in rows[0]]
        fitting = sum(len(row) == len(header) for row in rows[1:]) / max(1, len(rows) - 1)
        named = sum(name == text_field or is_field_name(name) for name in header)
        if len(rows) > 1 and fitting < 0.5 and not named and any(name.count(" ") > 1 for name in header):
            continue  # prose
        rank = (fitting, named, len(header), delimiter == usual)
        if best == ONE_COLUMN or rank > best_rank:
            best, best_rank = delimiter, rank
    return best
