"""The rows of JSON lines and of JSON lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain

from slm.data.fields import Rows, text_of_rows
from slm.data.source import ROW_LIMIT
from slm.data.text_file import UTF_8, File, malformed, read_text, too_long


def json_rows(file: File, text_field: str, errors: str, encoding: str = UTF_8) -> Rows:
    """The rows of a JSON list, or of JSON lines."""
    return text_of_rows(_json_values(file, errors, encoding), text_field, str(file))


def _json_values(file: File, errors: str, encoding: str) -> Iterator[object]:
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
        if block and len(text) - at > ROW_LIMIT:
            raise too_long(f"the row of {file} that begins on line {line + text.count(chr(10), 0, at):,}")
        needed = min(2 * (len(text) - at), ROW_LIMIT)  # a value longer than a block is not tried again at every block
        line += text.count("\n", 0, at)
        text = text[at:]
    if in_list:
        raise malformed(file, line, "the list has no end: the file was cut short")


def _json_value(text: str, at: int, *, is_last: bool, file: File, first_line: int) -> tuple[object, int] | None:
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
        raise malformed(file, first_line + error.lineno - 1, problem) from error
    except (ValueError, RecursionError) as error:  # Python limits both
        problem = "a number has too many digits, or too many brackets are open"
        raise malformed(file, first_line + text.count("\n", 0, at), problem) from error
