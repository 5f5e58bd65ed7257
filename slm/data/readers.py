"""Reads one file: its bytes, its text, or the rows of a table, by the format that its name ends in.

A row reader takes (file, text_field, errors, encoding) and returns what each row holds in the field of text: a string,
None where there is nothing, or anything else that the file holds there. No file is held in memory whole.

`datasets` is not used for local files: it takes strings such as "2020-01-01" for dates, "NA" for nothing and "007" for
7, reads a JSON list whole, does not give the line of an error and leaves lock files in the user's cache. The standard
library and pyarrow do none of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from slm.data.arrow_rows import arrow_rows, parquet_rows
from slm.data.csv_rows import csv_rows
from slm.data.fields import Rows
from slm.data.json_rows import json_rows
from slm.data.source import Piece, pieces_of, pieces_of_rows
from slm.data.text_file import UTF_8, File, read_text, suffix

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS has not fetched
OTHER_FORMATS = (".pdf", ".rtf", ".doc", ".docx", ".odt", ".epub", ".xlsx", ".zip", ".tar", ".bz2", ".xz")

# The row reader of each suffix; a file with any other suffix is read as plain text.
ROWS: dict[str, Callable[[File, str, str, str], Rows]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
}


class Text(NamedTuple):
    """The text of a file, which is read as its pieces are."""

    field: str  # of the rows that holds it, as the user writes it; empty where there is none
    pieces: Iterator[Piece]


def read_file(
    file: File,
    text_field: str,
    errors: str,
    encoding: str = UTF_8,
    *,
    start: int = 0,
    end: int | None = None,
    most: int | None = None,
) -> Text:
    """The text of a file. start, end: the bytes to read of plain text. most: of a table, the rows to read at most."""
    if reader := ROWS.get(suffix(file)):
        rows = reader(file, text_field, errors, encoding)
        return Text(rows.field, pieces_of_rows(islice(rows, most), str(file)))
    return Text("", pieces_of(read_text(file, errors, encoding, start=start, end=end), str(file)))
