"""Each format that is read: its rows, their field of text, and what is said of a malformed file."""

import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.data import readers, source, text_file
from slm.data.sources import open_source
from tests.data.conftest import read, refusal, write_parquet

ROWS = [{"id": 1, "text": "one\n"}, {"id": 2, "text": None}, {"id": 3, "text": "two<|endoftext|> three"}]
LINES = "\n".join(map(json.dumps, ROWS)) + "\n"
FILES = {
    "a.jsonl": LINES,
    "a.ndjson": "\n\r\n" + LINES.replace("\n", "\r\n"),
    "a.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "strings.json": ' ["one", null, "two", "three"] ',
    "lines.json": LINES,
    "list.jsonl": json.dumps(ROWS),
    "a.csv": 'id,text\n1,"one\n"\n2\n\n3,two<|endoftext|> three\n',
    "a.tsv": "id\ttext\r\n1\tone\r\n3\ttwo\r\n4\tthree",
}


@pytest.mark.parametrize("size", range(1, 8))
def test_blocks_may_cut_characters_line_ends_and_the_byte_order_mark(here, monkeypatch, size):
    monkeypatch.setattr(text_file, "BLOCK", size)
    Path("a.txt").write_bytes(b"\xef\xbb\xbf" + "é\r\n\r\n€ 😀\rz\ufeff\r".encode())
    text = list(text_file.read_text(Path("a.txt"), "strict"))
    assert "".join(text) == "é\n\n€ 😀\nz\ufeff\n"
    assert all(text)


def test_a_file_of_one_line_is_not_held_in_memory(here):
    with Path("a.txt").open("w") as file:
        for _ in range(24):
            file.write("once upon " * 100_000)
    tracemalloc.start()
    try:
        length = sum(len(piece.text) for piece in open_source("a.txt").pieces())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert length == 24_000_000 - 1
    assert peak < 8e6


@pytest.mark.parametrize("name", FILES)
def test_rows_are_documents(here, name):
    Path(name).write_text(FILES[name])
    assert read(name) == ["one", "two", "three"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_rows_do_not_depend_on_blocks(here, monkeypatch, name, size):
    monkeypatch.setattr(text_file, "BLOCK", size)
    Path(name).write_text("\ufeff" + FILES[name])
    assert read(name) == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_compressed_files(here, name, errors):
    Path(f"{name}.gz").write_bytes(gzip.compress(FILES[name].encode()))
    Path("b.txt.gz").write_bytes(gzip.compress(b"one<|endoftext|>two"))
    assert read(f"{name}.gz", errors=errors) == ["one", "two", "three"]
    assert read("b.txt.gz", errors=errors) == ["one", "two"]
    assert open_source("b.txt.gz").size_bytes is None


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_parquet(here, kind):
    import pyarrow as pa

    write_parquet("a.parquet", id=[1, 2, 3], story=pa.array(["one\r\n", None, "two<|endoftext|>three\0"], type=kind))
    assert read("a.parquet") == ["one", "two", "three\0"]
    assert open_source("a.parquet").size_bytes is None


def test_a_parquet_row_group_is_not_held_in_memory(here):
    import pyarrow as pa
    from pyarrow import parquet

    texts = pa.table({"text": [f"{number} once upon a time" * 100 for number in range(10_000)]})
    parquet.write_table(texts, "a.parquet", compression="none", use_dictionary=False)
    del texts
    before = pa.total_allocated_bytes()
    assert max(pa.total_allocated_bytes() for _ in open_source("a.parquet").pieces()) - before < 5e6
    assert Path("a.parquet").stat().st_size > 20e6


@given(st.lists(st.text('ab"\\\n,é😀{}[]1\x00', max_size=12)), st.integers(1, 20), st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_list_or_lines_come_back(tmp_path, texts, size, ascii_only):
    write = partial(json.dumps, ensure_ascii=ascii_only)
    rows = [{"n": -12.5, "text": text, "more": [None, {"a": True}]} for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_file, "BLOCK", size)
        for written in (write(rows), write(rows, indent=1), "\n".join(map(write, rows))):
            (tmp_path / "a.json").write_text(written)
            assert list(readers.json_rows(tmp_path / "a.json", "text", "strict")) == texts


def test_values_stay_the_text_they_are(here):
    Path("a.csv").write_text("text\n007\nNA\nnull\n2020-01-01\n1e5\n")
    Path("a.jsonl").write_text('{"text": "2020-01-01"}\n{"text": "2021-01-01"}\n')
    assert read("a.csv") == ["007", "NA", "null", "2020-01-01", "1e5"]
    assert read("a.jsonl") == ["2020-01-01", "2021-01-01"]


def test_long_rows_are_cut_as_long_documents_are(here):
    text = "once upon a time " * 10_000
    Path("a.jsonl").write_text(json.dumps({"text": text}))
    Path("a.csv").write_text(f'text\n"{text}"\n')
    Path("a.txt").write_text(text)
    pieces = list(open_source("a.txt").pieces())
    assert len(pieces) == 11
    assert list(open_source("a.jsonl").pieces()) == list(open_source("a.csv").pieces()) == pieces


def test_the_field_of_text_can_be_chosen(here):
    Path("a.jsonl").write_text('{"text": "one", "story": "two"}\n')
    Path("a.csv").write_text("text,story\none,two\n")
    write_parquet("a.parquet", text=["one"], story=["two"])
    assert read("a.*") == ["one"] * 3
    assert read("a.*", text_field="story") == ["two"] * 3


def test_the_only_field_of_strings_needs_no_choice(here):
    Path("a.jsonl").write_text('{"n": 1, "story": "one"}\n{"story": "two"}\n')
    Path("a.csv").write_text("story\none\n")
    assert read("a.jsonl") == ["one", "two"]
    assert read("a.csv") == ["one"]
    assert "no field 'stories'" in refusal("a.jsonl", text_field="stories")


def test_rows_without_text(here):
    Path("a.jsonl").write_text('{"text": null}\n{"text": " "}\n{"other": 1}\n')
    Path("b.json").write_text("[]")
    Path("c.csv").write_text("text\n")
    Path("d.csv").write_text("")
    assert "no text in 4 files, " in refusal("[a-d].*")


def test_binary_files(here):
    Path("a.txt").write_bytes(b"GIF\0\xff")
    assert refusal("a.txt").startswith("a.txt does not look like text: byte 3 is zero; the formats are text (.txt")
    assert "does not look like text" in refusal("a.txt", errors="replace")
    assert "--errors" not in refusal("a.txt", errors="replace")
    Path("b.txt").write_bytes(bytes(range(256)) * 10)  # few zeros, but nothing else is text either
    assert "does not look like text" in refusal("b.txt", errors="replace")


@pytest.mark.parametrize("place", [0, 50, 2**20 + 10])
def test_single_zero_bytes_in_a_text(here, capsys, place):
    source.note.cache_clear()
    words = b"once upon a time " * 100_000
    Path("a.txt").write_bytes(words[:place] + b"\0" + words[place:])
    whole = words[:place].decode() + "\ufffd" + words[place:].decode()
    assert "".join(piece.text for piece in open_source("a.txt", errors="replace").pieces()) == whole.rstrip()
    if place < 2**20:
        assert capsys.readouterr().err == "note: zero bytes in a.txt are read as U+FFFD\n"
        message = f"byte {place} of a.txt is zero, which no text has: delete it, or pass --errors replace"
        assert refusal("a.txt") == message


def test_zero_characters_in_rows_are_text(here):
    Path("a.jsonl").write_text('{"text": "a\\u0000b"}')
    assert read("a.jsonl") == ["a\0b"]


@pytest.mark.parametrize("start", [0, 5, 2**20 - 2, 2**20])
def test_bytes_that_are_not_utf8(here, start):
    Path("a.txt").write_bytes(b"a" * start + "€".encode()[:2] + b"\n")
    assert refusal("a.txt") == (
        f"a.txt is not UTF-8: byte {start:,} is 0xe2; save it as UTF-8, or pass --errors replace"
    )


def test_a_character_that_is_cut_short_at_the_end(here):
    Path("a.txt").write_bytes(b"abc\xe2\x82")
    assert "byte 3 is 0xe2" in refusal("a.txt")
    assert read("a.txt", errors="replace") == ["abc\ufffd"]


@pytest.mark.parametrize("name", ["a.jsonl", "strings.json", "a.csv", "a.txt"])
def test_bytes_that_are_not_utf8_can_be_replaced_in_every_format(here, name):
    text = {**FILES, "a.txt": "one<|endoftext|>two<|endoftext|>three"}[name]
    Path(name).write_bytes(text.encode().replace(b"two", b"t\xe9o"))
    assert f"{name} is not UTF-8: byte " in refusal(name)
    assert read(name, errors="replace") == ["one", "t\ufffdo", "three"]
    assert read(name, errors="ignore") == ["one", "to", "three"]
    assert refusal(name, errors="guess") == "errors is 'guess': choose strict, replace or ignore"


def test_a_field_that_is_not_there(here):
    Path("a.jsonl").write_text('{"story": "one", "title": "two"}\n')
    Path("a.csv").write_text("story,title\none,two\n")
    write_parquet("a.parquet", story=["one"], title=["two"])
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        mend = "it has: story, title; choose one with --text_field"
        assert refusal(name) == f"no field 'text' in {name}; {mend}"
        assert refusal(name, text_field="body") == f"no field 'body' in {name}; {mend}"


def test_rows_that_are_not_text(here):
    Path("a.jsonl").write_text('{"text": "one"}\n{"text": 2}\n')
    Path("b.json").write_text('["one", ["two"]]')
    write_parquet("c.parquet", text=[1, 2])
    assert refusal("a.jsonl") == (
        "row 2 of a.jsonl holds a value of type int, not text: fix that row, or choose another field with --text_field"
    )
    assert "row 2 of b.json holds a value of type list" in refusal("b.json")
    assert "row 1 of c.parquet holds a value of type int" in refusal("c.parquet")


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('{"text": "one"}\n{"text": "two}\n{"text": "three"}\n', 2, "Invalid control character"),
        ('{"text": "one"}\n\n{"text" "two"}\n' + '{"text": "three"}\n' * 9, 3, "Expecting ':' delimiter"),
        ('{"text": "one"}\n{"text": "tw', 2, "Unterminated string"),
        ('[{"text": "one"},\n{"text": "two"}', 2, "the list has no end: the file was cut short"),
        ('[{"text": "one"}]\nthe end', 2, "Expecting value"),
        ("Once upon a time", 1, "Expecting value"),
    ],
)
@pytest.mark.parametrize("size", [1, 10, 2**20])
def test_malformed_json(here, monkeypatch, text, line, problem, size):
    monkeypatch.setattr(text_file, "BLOCK", size)
    Path("a.jsonl").write_text(text)
    assert refusal("a.jsonl") == f"a.jsonl, line {line}, is malformed: {problem}; fix or delete that line"


@pytest.mark.parametrize("row", ["[" * 100_000, '{"a":' * 100_000, '{"text": "b", "n": ' + "9" * 5_000 + "}"])
def test_json_beyond_pythons_limits(here, row):
    Path("a.jsonl").write_text('{"text": "a"}\n' + row)
    problem = "a number has too many digits, or too many brackets are open"
    assert refusal("a.jsonl") == f"a.jsonl, line 2, is malformed: {problem}; fix or delete that line"


def test_malformed_csv(here):
    Path("a.csv").write_text("text,n\none,1\ntwo, three,2\n")
    Path("b.csv").write_text('text\n"o\nne"\n"two\nthree\n')
    assert refusal("a.csv") == (
        "a.csv, line 3, is malformed: 3 values under 2 names: put text with a delimiter in quotes;"
        " fix or delete that line"
    )
    assert refusal("b.csv").startswith("b.csv, line 4, is malformed: unexpected end of data")


def test_files_that_are_not_what_they_are_named(here):
    Path("a.parquet").write_text("text")
    Path("b.txt.gz").write_text("text")
    Path("c.txt.gz").write_bytes(gzip.compress(b"once upon a time" * 99)[:-9])
    assert refusal("a.parquet").startswith("cannot read a.parquet: Parquet file size is 4 bytes")
    assert refusal("b.txt.gz").startswith("cannot read b.txt.gz: Not a gzipped file")
    assert refusal("c.txt.gz").startswith("cannot read c.txt.gz: Compressed file ended before")


def test_local_files_are_read_without_datasets(here):
    for name in ("a.jsonl", "a.csv", "a.json"):
        Path(name).write_text(FILES[name])
    Path("a.txt").write_text("text")
    write_parquet("a.parquet", text=["one"])
    code = (
        "import sys; from slm.data.sources import open_source; print('pyarrow' in sys.modules);"
        "print(len(list(open_source('a.*').pieces()))); print('datasets' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(here / "home"), "PYTHONPATH": str(Path(readers.__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    short_row = "note: 1 of 3 rows of a.csv have no field 'text' and are left out\n"
    assert (run.stdout.split(), run.stderr) == (["False", "11", "False"], short_row)
    assert not (here / "home").exists(), "nothing is left in a cache"


def test_a_default_field_that_only_later_rows_have_is_taken(here, capsys):
    source.note.cache_clear()
    Path("a.jsonl").write_text('{"title": "A title"}\n{"title": "B", "text": "the story itself"}\n')
    Path("b.jsonl").write_text('{}\n{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    assert read("a.jsonl") == ["the story itself"]
    assert read("b.jsonl") == read("b.jsonl") == ["one", "two"]
    assert capsys.readouterr().err == (
        "note: 1 of 2 rows of a.jsonl have no field 'text' and are left out\n"
        "note: 1 of 4 rows of b.jsonl have no field 'text' and are left out\n"
    )


def test_a_default_field_far_below_is_not_passed_over(here):
    Path("a.jsonl").write_text('{"title": "one"}\n' * 40 + '{"title": "two", "text": "three"}\n')
    problem = "the first rows of a.jsonl have no field 'text', but a later one has"
    assert refusal("a.jsonl") == f"{problem}: choose it, or 'title', with --text_field"


def test_rows_that_mostly_lack_the_field_are_refused(here):
    Path("a.jsonl").write_text('{"text": "one"}\n' * 30 + '{"content": "two"}\n' * 2_000)
    problem = "2,000 of 2,030 rows of a.jsonl have no field 'text'"
    mend = "choose the field that they have, 'content', with --text_field, or fix those rows"
    assert refusal("a.jsonl") == f"{problem}; {mend}"


@pytest.mark.parametrize(
    "row",
    [
        {"id": "0", "lines": [{"speaker": "human", "line": "hi"}]},
        {"title": "a", "conversations": [{"from": "human", "value": "hi"}]},
        {"title": "a", "doc": {"body": "b"}},
        {"doc_id": "7"},
        {"URL": "a", "sha256": "b"},
        {"story": "a", "title": "b"},
    ],
)
def test_a_field_is_not_guessed_where_another_could_be_meant(here, row):
    import pyarrow as pa

    message = f"no field 'text' in a.jsonl; it has: {', '.join(row)}; choose one with --text_field"
    Path("a.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    assert refusal("a.jsonl") == message
    write_parquet("a.parquet", **{name: pa.array([value]) for name, value in row.items()})
    assert refusal("a.parquet") == message.replace("jsonl", "parquet")


def test_a_dictionary_of_strings_could_be_meant(here):
    import pyarrow as pa

    write_parquet("a.parquet", label=["x"], story=pa.array(["one"]).dictionary_encode())
    assert "it has: label, story; choose one" in refusal("a.parquet")
    assert read("a.parquet", text_field="story") == ["one"]


def test_identifiers_do_not_hide_the_only_text_and_the_field_is_printed(here, capsys):
    source.note.cache_clear()
    Path("ids.jsonl").write_text('{"id": "0", "source_url": "u", "story": "one"}\n')
    Path("ids.csv").write_text("uuid,date,story\n1,2020-01-01,two\n")
    assert read("ids.*") == ["two", "one"]
    assert capsys.readouterr().err == (
        "note: the text of ids.csv is in its field 'story'\nnote: the text of ids.jsonl is in its field 'story'\n"
    )


def test_a_lone_object_says_where_its_rows_are(here):
    Path("a.json").write_text('{"version": "1.1", "data": [{"text": "one"}]}')
    start = "no field 'text' in the only object of a.json; its rows are in the field 'data': "
    assert refusal("a.json") == start + "save that list as a file of its own"


def test_spaces_may_follow_the_delimiters_of_a_table(here):
    Path("a.csv").write_text('id, text\n1, one\n2, "two, and, three"\n')
    Path("b.tsv").write_text('id\t text\n1\t  "four\tfive"\n')
    assert read("a.csv") == ["one", "two, and, three"]
    assert read("b.tsv") == ["four\tfive"]


def test_short_rows_of_a_table_are_counted(here, capsys):
    source.note.cache_clear()
    Path("a.csv").write_text("id,text\n1,one\n\n2\n3,two\n")
    Path("b.csv").write_text("id,text\n1,one\n2\n3\n")
    assert read("a.csv") == ["one", "two"]
    assert capsys.readouterr().err == "note: 1 of 3 rows of a.csv have no field 'text' and are left out\n"
    assert refusal("b.csv").startswith("2 of 3 rows of b.csv have no field 'text'; choose the field that they have")


def test_the_formats_of_the_error_and_of_the_page_are_those_with_a_reader():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert set(readers.ROWS) <= set(re.findall(r"\.\w+", text_file.READABLE))
    assert set(readers.ROWS) <= set(re.findall(r"`(\.\w+)`", page.split("**Encodings.**")[0]))
