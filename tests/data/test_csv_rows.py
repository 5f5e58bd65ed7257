"""Tables: their delimiters, their header, and rows that break the rules."""

import csv
import io
import random
from pathlib import Path

import pytest

from slm.data import source
from slm.data.sources import open_source
from tests.data.conftest import read, refusal

PROSE = 'Once, upon a time; "there" was | a\tcat, and it had 0,5 kg; or 1,000.\n\nNot\r\nmore, she said.'


def table(rows, delimiter, **how):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, **how).writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_delimiter_is_found_among_all_the_others(here, suffix, delimiter, quoting):
    rows = [["id", "score", "text"], ["1", "0,5", PROSE], ["2", "1,5", "a" + PROSE], ["3", "", "|b;c,d"]]
    Path(f"a.{suffix}").write_text(table(rows, delimiter, quoting=quoting), newline="")
    prose = PROSE.replace("\r\n", "\n")
    assert read(f"a.{suffix}") == [prose, "a" + prose, "|b;c,d"]


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("id;text\n1;Once, upon, a, time\n2;Then, they, all\n", ["Once, upon, a, time", "Then, they, all"]),
        ("id;text, in English\n", None),
        ("id|text\n1|a, b; c\n", ["a, b; c"]),
        ("id ; text ;\n1;one;\n2;two;\n", ["one", "two"]),
        ("id;text\n1;one;\n2;two; \n", ["one", "two"]),
        (",text\n0,one\n1,two\n", ["one", "two"]),
        (",story\n0,one\n1,two\n", ["one", "two"]),
        ("price;text\n1,50;one\n2,75;two\n", ["one", "two"]),
        ("a,b;text\n1,2;one\n3,4;two\n", ["one", "two"]),
        ("id;text\n1;a,b\n", ["a,b"]),
        ('"id"|"text"\n"1"|"a""|""b"\n', ['a"|"b']),
        ('id;text\n1;"a;\n\n,;\n"\n', ["a;\n\n,;"]),
        ("sep=;\nid;text\n1;a,b\n", ["a,b"]),
        (" \n\nid,text\n \n1,one\n", ["one"]),
        ("text;\nOnce, upon a time;\n", ["Once, upon a time"]),
        ("text\nOnce, upon a time\nThe; end\n", ["Once, upon a time", "The; end"]),
        ('Text\n"a, ""b"""\nc\n', ['a, "b"', "c"]),
        (
            "Once upon a time, there was\na cat.\nThe end; or, so, they say\n",
            ["Once upon a time, there was", "a cat.", "The end; or, so, they say"],
        ),
        ("text\na\x1fb\n", ["a\x1fb"]),
        ("text\n", None),
        ("id;text\n", None),
    ],
)
def test_hostile_tables(here, content, documents):
    Path("a.csv").write_text(content)
    if documents is None:
        assert "no text in 1 file" in refusal("a.csv") or "it has: id, text, in English" in refusal("a.csv")
    else:
        assert read("a.csv") == documents


def test_a_single_column_without_a_name_loses_no_row(here, capsys):
    source.note.cache_clear()
    Path("a.csv").write_text("Once upon a time\nthere was a cat.\nThe end.\n")
    assert read("a.csv") == ["Once upon a time", "there was a cat.", "The end."]
    note = "note: the first row of a.csv is taken as text, not as the name of its only column\n"
    assert capsys.readouterr().err == note
    Path("b.csv").write_text("Refrain\nla\n")
    assert read("b.csv") == ["Refrain", "la"]
    assert read("b.csv", text_field="Refrain") == ["la"]
    assert (
        refusal("b.csv", text_field="body") == "no field 'body' in b.csv; it has: Refrain; choose one with --text_field"
    )


@pytest.mark.parametrize("name", ["text", "TEXT", " Story ", "content", "\ufefftext", "prompt"])
def test_a_single_column_with_a_name(here, name):
    Path("a.csv").write_text(f"{name}\none\n")
    assert read("a.csv") == ["one"]


def test_a_single_column_of_identifiers_is_not_text(here):
    Path("a.csv").write_text("doc_id\n17\n18\n")
    assert refusal("a.csv") == "no field 'text' in a.csv; it has: doc_id; choose one with --text_field"


def test_text_after_a_quotation(here):
    Path("a.csv").write_text('id;text\n1;"one"\n2;"two" she said\n')
    problem = "a.csv, line 3, is malformed: text follows the end of a quotation; fix or delete that line"
    assert refusal("a.csv") == problem


def test_random_tables_come_back(here):
    dice = random.Random(0)
    parts = [*",;\t|\"'\n ", "0,5", "the end", "a", "é", "猫", "\n\n"]
    for number in range(300):
        delimiter = dice.choice(",;\t|")
        header = ["id", "text", "note, or; more"][: dice.choice([2, 3])]
        dice.shuffle(header)
        texts = ["x" + "".join(dice.choices(parts, k=dice.randint(0, 30))).strip() for _ in range(dice.randint(1, 9))]
        rows = [{"id": str(i), "text": text, "note, or; more": "1,5"} for i, text in enumerate(texts)]
        written = table([header, *([row[name] for name in header] for row in rows)], delimiter)
        file = Path(f"{number}.csv")
        file.write_text(written, newline="")
        found = ["".join(piece.text for piece in open_source(str(file)).pieces())]
        assert found == ["".join(text.rstrip() for text in texts)], written
