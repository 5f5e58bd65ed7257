"""The text of a row: which of its fields holds it, or several joined, and a chat as plain turns."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from slm.data.source import note
from slm.errors import UserError

LOOK_AHEAD = 32  # rows by which the field of text is chosen

# Names of fields that never hold the text unless the user chooses them.
_METADATA = re.compile(
    r"(.*[_.-])?(id|ids|uuid|guid|doi|isbn|url|uri|href|path|filename|hash|md5|sha\d*|checksum|version|date|time|timestamp"
    r"|at|created|updated|lang|language)|(?-i:[a-z0-9]+(Id|ID|At|Url|Date|Time))|index|idx|key|file|slug|split",
    re.IGNORECASE,
)
# Names of fields that are only together what is meant.
_JOINED = (
    "instruction",
    "input",
    "context",
    "question",
    "prompt",
    "query",
    "output",
    "answer",
    "response",
    "completion",
)
# Names of the only column of a table; any other first row is text.
_NAMES = (
    "text", "texts", "content", "contents", "body", "story", "stories", "document", "documents", "doc", "article",
    "sentence", "sentences", "paragraph", "passage", "poem", "poems", "lyrics", "review", "comment", "message", "post",
    "tweet", "title", "abstract", "summary", "description", "chapter", "line", "lines", "value", "data", "code",
    *_JOINED,
)  # fmt: skip
TURNS = (("role", "content"), ("from", "value"))  # who speaks in a turn of a chat, and what is said

Fields = tuple[tuple[str, ...], ...]  # the fields of text, each as the names that lead to it: doc.text is (doc, text)

_ABSENT = object()


@dataclass(frozen=True)
class Rows:
    """The texts of rows, and the field that they are from."""

    field: str  # as the user writes it; empty where no row has one
    texts: Iterator[object]

    def __iter__(self) -> Iterator[object]:
        return self.texts


def text_of_rows(rows: Iterable[object], text_field: str, where: str, fields: Fields | None = None) -> Rows:
    """What the rows hold in their fields of text, None where a row has none; a row that is no object is itself text.

    fields: what `choose_field` said; None: the first LOOK_AHEAD rows decide. Rows without any of the fields are left
    out and counted on stderr. where: names the rows for the user. Raises UserError, perhaps only when the texts are
    read, where the field is not clear, or most rows lack it.
    """
    rows = iter(rows)
    first = [] if fields else list(islice(rows, LOOK_AHEAD))
    if objects := [row for row in first if isinstance(row, Mapping)]:
        fields = fields_of_objects(text_field, objects, where)
    return Rows(field_name(fields or ()), _texts(chain(first, rows), text_field, where, fields))


def _texts(rows: Iterable[object], text_field: str, where: str, fields: Fields | None) -> Iterator[object]:
    count = lacking = 0
    usual = ((text_field,),)
    instead: Counter[str] = Counter()  # fields of strings in rows that lack the right ones
    for row in rows:
        if not isinstance(row, Mapping):
            yield row
            continue
        if fields == usual and isinstance(text := row.get(text_field), str):  # by far the most rows
            count += 1
            yield text
            continue
        if fields is None:
            fields = fields_of_objects(text_field, [row], where)
        elif text_field in row and (text_field,) not in fields:
            problem = f"the first rows of {where} have no field {text_field!r}, but a later one has"
            raise UserError(f"{problem}: choose it, or {field_name(fields)!r}, with --text_field")
        count += 1
        values = [value for value in (_value(row, path) for path in fields) if value is not _ABSENT]
        if not values:
            lacking += 1
            instead.update(name for name, value in row.items() if isinstance(value, str))
        yield _joined([_plain(value) for value in values])
    if fields and lacking:
        _report_lacking(lacking, count, field_name(fields), where, instead)


def field_name(fields: Fields) -> str:
    """`fields` as the user writes them."""
    return ",".join(".".join(path) for path in fields)


def is_field_name(name: str) -> bool:
    """Whether this is a usual name of a field, and hardly text."""
    return name.lower() in _NAMES or bool(_METADATA.fullmatch(name))


def columns(fields: Fields) -> list[str]:
    """The columns of a table that `fields` are in."""
    return list(dict.fromkeys(name for name, *_ in fields))


def _report_lacking(lacking: int, count: int, field: str, where: str, instead: Counter[str]) -> None:
    """Print how many rows have no field `field`. Raises UserError where most have none."""
    problem = f"{lacking:,} of {count:,} rows of {where} have no field {field!r}"
    if 2 * lacking > count:
        has = f", {instead.most_common(1)[0][0]!r}," if instead else ""
        raise UserError(f"{problem}; choose the field that they have{has} with --text_field, or fix those rows")
    note(f"{problem} and are left out")


# --- Choosing ---


def fields_of_objects(text_field: str, rows: Sequence[Mapping[str, object]], where: str) -> Fields:
    """The fields of text of JSON objects, by the values that these rows have. Raises UserError as `choose_field`."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(type(_plain(value)))
    strings = [name for name, found in kinds.items() if found <= {str, type(None)} and str in found]
    others = [name for name, found in kinds.items() if found & {str, list, dict} or found == {type(None)}]
    others = [name for name in others if name not in strings]
    if len(rows) == 1 and _asked(text_field, kinds)[1]:
        inside = [
            name
            for name, value in rows[0].items()
            if isinstance(value, list) and any(isinstance(item, dict) for item in value) and name in others
        ]
        if inside:
            raise UserError(
                f"no field {text_field!r} in the only object of {where}; its rows are in the field {inside[0]!r}:"
                " save that list as a file of its own"
            )
    return choose_field(text_field, kinds, strings, others, where)


def choose_field(
    text_field: str, names: Collection[str], strings: Collection[str], others: Collection[str], where: str
) -> Fields:
    """`text_field`, or, where nobody chose one, the only field that could hold the text.

    text_field: a name, or several separated by commas; a.b is the field b of the object a.
    strings: the fields of strings or of chats. others: those of lists, objects and the like, which could also be meant.
    A field whose name is that of an identifier or of metadata, such as doc_id or url, never holds the text unless it is
    chosen. Raises UserError, with the names, where the field is not clear.
    """
    asked, missing = _asked(text_field, names)
    if not missing:
        return asked
    possible = [name for name in strings if not _METADATA.fullmatch(name)]
    if text_field == "text" and len(possible) == 1 and not any(not _METADATA.fullmatch(name) for name in others):
        note(f"the text of {where} is in its field {possible[0]!r}")
        return ((possible[0],),)
    has = ", ".join(textwrap.shorten(name, 40, placeholder="...") for name in list(names)[:20])
    joined = [name for name in possible if name.lower() in _JOINED]
    several = f", or join several, as in --text_field {','.join(joined)}" if len(joined) > 1 else ""
    raise UserError(f"no field {missing[0]!r} in {where}; it has: {has}; choose one with --text_field{several}")


def _asked(text_field: str, names: Collection[str]) -> tuple[Fields, list[str]]:
    """The fields that `text_field` means, and those of them that are not among `names`."""
    asked = [text_field] if text_field in names else [name.strip() for name in text_field.split(",")]
    fields = tuple((name,) if name in names else tuple(name.split(".")) for name in asked)
    return fields, [name for name, field in zip(asked, fields, strict=True) if field[0] not in names]


# --- The text of a value ---


def _value(row: object, path: tuple[str, ...]) -> object:
    """What `path` leads to in `row`, or _ABSENT."""
    for name in path:
        if not isinstance(row, Mapping) or name not in row:
            return _ABSENT
        row = row[name]
    return row


def _joined(texts: list[object]) -> object:
    """Texts with a blank line between them, empty ones left out; the first value that is not text, if there is one."""
    if len(texts) == 1:
        return texts[0]
    strings = [text for text in texts if isinstance(text, str)]
    other = [text for text in texts if text is not None and not isinstance(text, str)]
    return other[0] if other else "\n\n".join(text.strip() for text in strings if text.strip()) or None


def _plain(value: object) -> object:
    """A chat as plain text, "role: content" for each turn, with a blank line between turns; any other value as it is.

    Turns that say nothing are left out. What is said may be a list of parts, of which those of text count.
    """
    if value == []:
        return None
    keys = _keys(value) if isinstance(value, list) else None
    if not isinstance(value, list) or keys is None:
        return value
    turns = []
    for turn in value:
        said = turn.get(keys[1])
        if isinstance(said, list):
            said = "\n".join(
                part["text"] for part in said if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
        if said is not None and not isinstance(said, str):
            return value
        if said and said.strip():
            turns.append(f"{turn[keys[0]]}: {said.strip()}")
    return "\n\n".join(turns)


def _keys(value: list[object]) -> tuple[str, str] | None:
    """The names of who speaks and what is said in the turns of a chat; None where `value` is none."""
    turns = [turn for turn in value if isinstance(turn, Mapping)]
    for who, said in TURNS if len(turns) == len(value) else ():
        if all(isinstance(turn.get(who), str) for turn in turns) and any(said in turn for turn in turns):
            return who, said
    return None
