"""Text in, documents out: what is read, where it is cut, and what is said when it cannot be read."""

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.data import sources
from slm.data.sources import END_OF_TEXT, open_source, validation_source
from slm.errors import UserError

# GPT-2's division of text into words (Radford et al., 2019)
GPT2 = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def read(dataset, **options):
    """The documents of a data set, their pieces joined."""
    return joined(open_source(str(dataset), **options).pieces())


def joined(pieces):
    documents, text = [], ""
    for piece in pieces:
        assert piece.text
        assert END_OF_TEXT not in piece.text
        text += piece.text
        if piece.ends_document:
            documents.append(text)
            text = ""
    assert text == "", "the last piece ends a document"
    return documents


def refusal(dataset, **options):
    """The one line that is said of a data set that cannot be read."""
    with pytest.raises(UserError) as raised:
        read(dataset, **options)
    assert len(raised.value.problems) == 1
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_parquet(file, **columns):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), file)


# --- Documents and pieces ---


def test_a_text_is_one_document(here):
    Path("a.txt").write_text("Once upon a time.\n\nThe end.\n")
    assert list(open_source("a.txt").pieces()) == [("Once upon a time.\n\nThe end.", True)]


def test_the_end_of_text_parts_documents_and_white_space_around_it_goes(here):
    Path("a.txt").write_text("<|endoftext|>\n\n one \n<|endoftext|>\n \n<|endoftext|>two\n\nlines<|endoftext|>")
    assert list(open_source("a.txt").pieces()) == [("one", True), ("two\n\nlines", True)]


def test_a_source_can_be_read_again(here):
    Path("a.txt").write_text("one<|endoftext|>two")
    source = open_source("a.txt")
    assert joined(source.pieces()) == joined(source.pieces()) == ["one", "two"]


def test_a_document_ends_with_its_file(here):
    Path("a.txt").write_text("one<|endof")
    Path("b.txt").write_text("text|>two")
    assert read("*.txt") == ["one<|endof", "text|>two"]


@pytest.mark.parametrize("size", range(1, 8))
def test_blocks_may_cut_characters_line_ends_and_the_byte_order_mark(here, size):
    Path("a.txt").write_bytes(b"\xef\xbb\xbf" + "é\r\n\r\n€ 😀\rz\ufeff\r".encode())
    text = list(sources._text(Path("a.txt"), "strict", size=size))
    assert "".join(text) == "é\n\n€ 😀\nz\ufeff\n"
    assert all(text)


def test_a_long_document_is_cut_before_the_first_blank_line_after_2048_characters():
    text = "a" * 2000 + "\n\n" + "b" * 100 + " \n \n\n" + "c " * 500 + "\n\nd"
    assert list(sources._pieces([text])) == [
        ("a" * 2000 + "\n\n" + "b" * 100, False),
        (" \n \n\n" + "c " * 500 + "\n\nd", True),
    ]


def test_white_space_that_began_before_2048_characters_is_no_place_to_cut():
    text = "a" * 2047 + "\n\n\n\n" + "b" * 2000
    assert list(sources._pieces([text])) == [(text, True)]
    assert [len(piece.text) for piece in sources._pieces(["a" + text])] == [2048, 2004]


def test_without_blank_lines_a_document_is_cut_at_white_space_after_16384_characters():
    text = "abcdef \n" * 5000 + "end"
    pieces = list(sources._pieces([text]))
    assert [len(piece.text) for piece in pieces] == [16390, 16384, 40003 - 32774]
    assert [piece.text[:4] for piece in pieces] == ["abcd", " \nab", " \nab"]


def test_without_white_space_a_document_is_cut_after_65536_characters():
    assert [len(piece.text) for piece in sources._pieces(["a" * 150_000])] == [65536, 65536, 18928]


def test_white_space_at_the_end_of_a_long_document_goes_wherever_blocks_end():
    blocks = ["a" * 70_000, " ", "\n" * 70_000, " ", "<|endof", "text|>", " b", "<|endof", "text"]
    assert joined(sources._pieces(blocks)) == ["a" * 70_000, "b<|endoftext"]


BITS = ["word", "I'm", "12", "é", "...", " ", "\n", "\n\n", " \n ", "\t", "\xa0", "\x1c", "\u2028", "x" * 20, " " * 40]
BITS += ["\n" * 30, "<|end", "<|endof", "text|>", END_OF_TEXT]
TEXTS = st.lists(st.sampled_from(BITS), max_size=60).map("".join)
WORDS = st.sampled_from(["word ", "I'm  ", ". \n", "a\xa0", "b\x1c ", "\n \n"])


@given(TEXTS, st.integers(1, 30))
@settings(max_examples=400, deadline=None)
def test_pieces_do_not_depend_on_blocks_and_join_to_the_documents(text, size):
    with pytest.MonkeyPatch.context() as patch:
        for name, length in {"LEAST": 10, "LONG": 30, "MOST": 80}.items():
            patch.setattr(sources, name, length)
        whole = list(sources._pieces([text]))
        assert list(sources._pieces(text[i : i + size] for i in range(0, len(text), size))) == whole
    documents = [document.strip() for document in text.split(END_OF_TEXT)]
    assert joined(whole) == [document for document in documents if document]
    for piece, following in pairwise(whole):
        assert len(piece.text) <= 80
        if not piece.ends_document and len(piece.text) < 80:
            assert len(piece.text) >= 10
            assert not piece.text[-1].isspace()
            assert following.text[0].isspace()


@given(st.lists(st.tuples(WORDS, st.integers(1, 3000))))
@settings(max_examples=50, deadline=None)
def test_pieces_have_the_words_of_the_whole(parts):
    text = "".join(part * times for part, times in parts).strip()
    pieces = list(sources._pieces(text[i : i + 4096] for i in range(0, len(text), 4096)))
    if all(len(piece.text) < 65_536 for piece in pieces):  # else one was cut where there was nothing better
        assert [word for piece in pieces for word in GPT2.findall(piece.text)] == GPT2.findall(text)


def test_an_information_separator_is_white_space_to_python_but_not_to_gpt2():
    text = "a.\x1c" * 7000
    pieces = list(sources._pieces([text + "b"]))
    assert [len(piece.text) for piece in pieces] == [21_001]
    assert len(GPT2.findall(text)) == 14_000


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


# --- Formats ---

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


@pytest.mark.parametrize("name", FILES)
def test_rows_are_documents(here, name):
    Path(name).write_text(FILES[name])
    assert read(name) == ["one", "two", "three"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_rows_do_not_depend_on_blocks(here, monkeypatch, name, size):
    monkeypatch.setattr(sources, "_text", partial(sources._text, size=size))
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
        patch.setattr(sources, "_text", partial(sources._text, size=size))
        for written in (write(rows), write(rows, indent=1), "\n".join(map(write, rows))):
            (tmp_path / "a.json").write_text(written)
            assert list(sources._json_rows(tmp_path / "a.json", "text", "strict")) == texts


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
    Path("a.jsonl").write_text('{"n": 1, "story": "one"}\n{"story": "two", "title": "three"}\n')
    Path("a.csv").write_text("story\none\n")
    assert read("a.jsonl") == ["one", "two"]
    assert read("a.csv") == ["one"]
    assert "no field 'stories'" in refusal("a.jsonl", text_field="stories")


# --- Paths ---


def test_a_folder_is_read_in_order_without_hidden_and_foreign_files(here):
    for name in ["b/2.txt", "b/1.md", "a.text", "c.JSONL", ".hidden.txt", ".git/a.txt", "d.pdf", "e.bin"]:
        file = here / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"text": "rows"}' if name == "c.JSONL" else name)
    assert read("set") == read(here / "set") == ["a.text", "b/1.md", "b/2.txt", "rows"]
    assert open_source("set").description == "4 files, 35 bytes: a.text, b/1.md, b/2.txt, 1 more"


def test_globs(here):
    for name in ["a.txt", "b.txt", "c.md", "d/e.txt"]:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    assert read("*.txt") == ["a.txt", "b.txt"]
    assert read("**/*.txt") == ["a.txt", "b.txt", "d/e.txt"]
    assert read("?.md") == ["c.md"]


def test_a_file_of_unknown_kind_is_read_as_text(here):
    Path("LICENSE").write_text("one")
    Path("story.en").write_text("two")
    Path("a[1].txt").write_text("three")
    assert [read(name) for name in ("LICENSE", "story.en", "a[1].txt")] == [["one"], ["two"], ["three"]]


def test_a_path_is_preferred_to_a_name(here):
    Path("stories").write_text("mine")
    Path("roneneldan").mkdir()
    Path("roneneldan/TinyStories").write_text("mine too")
    assert read("stories") == ["mine"]
    assert read("roneneldan/TinyStories") == ["mine too"]
    assert validation_source("stories") is validation_source("roneneldan/TinyStories") is None


def test_descriptions_and_sizes(here):
    Path("a.txt").write_text("a" * 13_900_000)
    Path("b.txt").write_text("b")
    assert open_source("*.txt").description == "2 files, 13.9 MB: a.txt, b.txt"
    assert open_source("*.txt").size_bytes == 13_900_001
    assert open_source(str(here / "b.txt")).description == "1 file, 1 bytes: b.txt"


# --- Fingerprints ---


def test_a_fingerprint_tells_contents_of_equal_size_and_time_apart(here):
    def fingerprint(text):
        Path("a.txt").write_text(text)
        os.utime("a.txt", (1, 1))
        return open_source("a.txt").fingerprint

    assert int(fingerprint("one"), 16)
    assert fingerprint("one") == fingerprint("one") != fingerprint("two")


def test_a_fingerprint_tells_what_else_changes_the_text(here):
    Path("a.txt").write_text("one")
    Path("b.txt").write_text("two")
    seen = [
        open_source("a.txt"),
        open_source("a.txt", text_field="story"),
        open_source("a.txt", errors="replace"),
        open_source("*.txt"),
        open_source("stories"),
        open_source("stories:3"),
        open_source("stories:3", held_out=True),
        open_source("tinystories"),
        open_source("tinystories", held_out=True),
        open_source("tinystories", text_field="story"),
        open_source("owner/name"),
    ]
    Path("a.txt").rename("c.txt")  # now after b
    seen.append(open_source("*.txt"))
    assert len({source.fingerprint for source in seen}) == len(seen)


def test_a_fingerprint_tells_how_a_file_is_read(here):
    Path("a.txt").write_text('{"text": "one"}')
    fingerprint = open_source("a.txt").fingerprint
    Path("a.txt").rename("a.jsonl")
    assert open_source("a.jsonl").fingerprint != fingerprint


def test_a_fingerprint_stays_when_a_folder_moves(here):
    Path("one").mkdir()
    Path("one/a.txt").write_text("text")
    fingerprint = open_source("one").fingerprint
    Path("one").rename("two")
    assert open_source(str(here / "two")).fingerprint == fingerprint


# --- What cannot be read ---


def test_missing_paths(here):
    Path("data").mkdir()
    Path("data/story.txt").write_text("text")
    assert refusal("data/stroy.txt") == "no file or folder data/stroy.txt: did you mean data/story.txt?"
    assert refusal("data/storys") == "no file or folder data/storys: did you mean data/story.txt?"
    assert refusal("storis").endswith("did you mean stories or tinystories?")
    nothing_like_it = "no file or folder no/such/file: give the path of a text, or pass --dataset stories"
    assert refusal("no/such/file") == nothing_like_it
    assert refusal("*.txt") == "no file matches *.txt: mend the pattern, or give a folder"
    assert refusal("") == "'' is neither a file nor a folder: give the path of one"


@pytest.mark.parametrize("text", ["", " \n\t\n", "<|endoftext|>\n<|endoftext|>"])
def test_files_without_text(here, text):
    Path("a.txt").write_text(text)
    assert "no text in 1 file, " in refusal("a.txt")


def test_rows_without_text(here):
    Path("a.jsonl").write_text('{"text": null}\n{"text": " "}\n{"other": 1}\n')
    Path("b.json").write_text("[]")
    Path("c.csv").write_text("text\n")
    Path("d.csv").write_text("")
    assert "no text in 4 files, " in refusal("[a-d].*")


def test_folders_without_anything_to_read(here):
    Path("set").mkdir()
    Path("set/a.pdf").write_text("text")
    message = "nothing to read in the folder set: the formats are text (.txt, .text, .md), .jsonl"
    assert refusal("set").startswith(message)


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.zip", "a.tar.gz"])
def test_formats_that_cannot_be_read(here, name):
    Path(name).write_text("text")
    start = f"cannot read {name}: .{name.split('.')[1]} is not among the formats, which are text ("
    assert refusal(name).startswith(start)


def test_binary_files(here):
    Path("a.txt").write_bytes(b"GIF\0\xff")
    assert refusal("a.txt").startswith("a.txt does not look like text: byte 3 is zero; the formats are text (.txt")
    assert "does not look like text" in refusal("a.txt", errors="replace")


def test_zero_characters_in_rows_are_text(here):
    Path("a.jsonl").write_text('{"text": "a\\u0000b"}')
    assert read("a.jsonl") == ["a\0b"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are Unix's")
def test_files_without_permission(here, monkeypatch):
    Path("a.txt").write_text("text")
    if os.geteuid() == 0:  # whom nothing is denied

        def deny(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", deny)
    Path("a.txt").chmod(0)
    assert refusal("a.txt") == "cannot read a.txt: Permission denied; give yourself the right to read it"


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
        "row 2 of a.jsonl holds a value of type int, not text: mend that row, or choose another field with --text_field"
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
    monkeypatch.setattr(sources, "_text", partial(sources._text, size=size))
    Path("a.jsonl").write_text(text)
    assert refusal("a.jsonl") == f"a.jsonl, line {line}, is malformed: {problem}; mend or delete that line"


@pytest.mark.parametrize("row", ["[" * 100_000, '{"a":' * 100_000, '{"text": "b", "n": ' + "9" * 5_000 + "}"])
def test_json_beyond_pythons_limits(here, row):
    Path("a.jsonl").write_text('{"text": "a"}\n' + row)
    problem = "a number has too many digits, or too many brackets are open"
    assert refusal("a.jsonl") == f"a.jsonl, line 2, is malformed: {problem}; mend or delete that line"


def test_malformed_csv(here):
    Path("a.csv").write_text("text,n\none,1\ntwo, three,2\n")
    Path("b.csv").write_text('text\n"o\nne"\n"two\nthree\n')
    assert refusal("a.csv") == (
        "a.csv, line 3, is malformed: 3 values under 2 names: put text with a delimiter in quotes;"
        " mend or delete that line"
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
    environment = {**os.environ, "HOME": str(here / "home"), "PYTHONPATH": str(Path(sources.__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (run.stdout.split(), run.stderr) == (["False", "11", "False"], "")
    assert not (here / "home").exists(), "nothing is left in a cache"


# --- Built-in stories and the hub ---


@pytest.fixture
def tales(monkeypatch):
    def tell(count, seed=0):
        yield from (f"tale {number} of {seed}" for number in range(count))

    monkeypatch.setattr(sources.stories, "stories", tell, raising=False)


def test_built_in_stories(here, tales):
    assert read("stories:2") == ["tale 0 of 0", "tale 1 of 0"]
    assert read("stories:1", held_out=True) == ["tale 0 of 1"]
    assert open_source("stories").description == "built-in stories (10,000)"
    assert len(read("stories")) == 10_000
    assert open_source("stories").fingerprint == open_source("stories:10000").fingerprint
    assert validation_source("stories") is validation_source("stories:5") is None


@pytest.mark.parametrize("number", ["", "0", "-1", "many", "1.5"])
def test_numbers_of_stories_that_cannot_be(here, number):
    assert refusal(f"stories:{number}").startswith(f"cannot write {number!r} stories: give a whole number from 1 on")


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set of three splits, owner/name; the calls it gets."""
    import datasets

    splits = {
        "train": [{"text": "one", "n": 1}, {"text": None, "n": 2}, {"text": "two", "n": 3}],
        "valid": [{"story": "three", "n": 1}],
        "test": [{"text": "four"}],
    }
    calls = []

    def load_dataset(name, split=None, streaming=False):
        calls.append((name, split))
        assert streaming
        if name == "owner/broken":
            raise ValueError("Config name is missing.\nPlease pick one")
        if split is not None and split not in splits:
            raise ValueError(f"Bad split: {split}. Available splits: {list(splits)}")
        if name == "owner/train_only":
            return {"train": splits["train"]}
        return splits if split is None else splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "_knock", lambda: None)
    return calls


def test_hub_data_sets(here, hub):
    source = open_source("owner/name")
    assert hub == [], "the hub is asked when the text is read"
    assert source.description == "hub data set owner/name, split train"
    assert source.size_bytes is None
    assert joined(source.pieces()) == joined(source.pieces()) == ["one", "two"]
    assert hub == [("owner/name", "train")] * 2
    assert read("owner/name", held_out=True) == ["three"]
    no_field = "no field 'body' in hub data set owner/name, split train; it has: text, n; choose one with --text_field"
    assert refusal("owner/name", text_field="body") == no_field


def test_a_field_that_only_later_rows_have_is_not_passed_over(here):
    Path("a.jsonl").write_text('{"title": "A title"}\n{"title": "B", "text": "the story itself"}\n')
    start = (
        "the first row of a.jsonl has no field 'text', but a later one has: choose it, or 'title', with --text_field"
    )
    assert refusal("a.jsonl") == start


def test_validation_splits(here, hub):
    source = validation_source("owner/name")
    assert source.description == "hub data set owner/name, split valid"
    assert joined(source.pieces()) == ["three"]
    assert validation_source("owner/train_only") is None
    assert open_source("owner/train_only", held_out=True).description == "hub data set owner/train_only, split train"
    assert validation_source("owner/name").fingerprint != open_source("owner/name").fingerprint


def test_tinystories_and_its_validation_split(here, hub):
    assert read("tinystories") == ["one", "two"]
    assert hub == [("roneneldan/TinyStories", "train")]
    hub.clear()
    assert validation_source("tinystories").description == "hub data set roneneldan/TinyStories, split validation"
    assert hub == []


def test_what_the_hub_refuses(here, hub):
    assert "Config name is missing; download" in refusal("owner/broken")
    with pytest.raises(UserError, match="Config name is missing; download"):
        validation_source("owner/broken")


def test_names_that_look_like_paths_are_not_looked_for_on_the_hub(here, hub):
    Path("data").mkdir()
    for dataset in ("data/story", "other/story.txt", "./owner", "a/b/c"):
        assert refusal(dataset).startswith(f"no file or folder {dataset}: ")
    assert hub == []


def test_without_a_network_the_hub_is_given_up_soon(here, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("would try again for half a minute"))
    message = refusal("tinystories")
    assert message.startswith("cannot read roneneldan/TinyStories from the hub, and there is no such path here: ")
    assert "the hub does not answer (" in message
    assert message.endswith("; download a text file elsewhere and pass its path, or pass --dataset stories")
