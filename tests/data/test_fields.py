"""The text of a row: several fields joined, nested ones, chats as turns; in every format that has rows."""

import json
from pathlib import Path

import pytest

from slm.data import source
from tests.data.conftest import read, refusal, write_parquet

SHAREGPT = [{"from": "human", "value": " hi\n"}, {"from": "gpt", "value": "hello\n\nyou"}]
OPENAI = [
    {"role": "system", "content": ""},
    {"role": "user", "content": [{"type": "text", "text": "what"}, {"type": "image_url"}, {"text": "is it?"}]},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "assistant", "content": "a fox"},
]
QUESTIONS = [{"id": 1, "question": "Why?", "answer": " Because. "}, {"id": 2, "question": "How?", "answer": ""}]


def write(name, rows):
    if name.endswith(".parquet"):
        write_parquet(name, **{column: [row[column] for row in rows] for column in rows[0]})
    elif name.endswith(".arrow"):
        import pyarrow as pa

        table = pa.Table.from_pylist(rows)
        with pa.OSFile(name, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif name.endswith(".csv"):
        Path(name).write_text("\n".join(",".join(map(str, row)) for row in [rows[0], *(row.values() for row in rows)]))
    else:
        Path(name).write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.arrow"])
def test_several_fields_are_joined_by_a_blank_line(here, name):
    write(name, QUESTIONS)
    assert read(name, text_field="question,answer") == ["Why?\n\nBecause.", "How?"]
    assert read(name, text_field="answer, question") == ["Because.\n\nWhy?", "How?"]
    assert read(name, text_field="answer") == ["Because."]
    assert refusal(name, text_field="question,anser") == (
        f"no field 'anser' in {name}; it has: id, question, answer; choose one with --text_field,"
        " or join several, as in --text_field question,answer"
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_nested_fields(here, name):
    write(name, [{"n": 1, "doc": {"title": "A", "body": {"text": "one"}}}, {"n": 2, "doc": None}])
    assert read(name, text_field="doc.body.text") == ["one"]
    assert read(name, text_field="doc.title,doc.body.text") == ["A\n\none"]


def test_a_row_without_some_of_the_fields_is_read_without_them(here, capsys):
    source.note.cache_clear()
    write("a.jsonl", [{"a": "1", "b": "2"}, {"b": "3"}, {"c": "4"}])
    assert read("a.jsonl", text_field="a,b") == ["1\n\n2", "3"]
    assert capsys.readouterr().err == "note: 1 of 3 rows of a.jsonl have no field 'a,b' and are left out\n"
    write("a.jsonl", [{"doc": {"text": "1"}}, {"doc": {"body": "2"}}, {"doc": "3"}])
    assert refusal("a.jsonl", text_field="doc.text") == (
        "2 of 3 rows of a.jsonl have no field 'doc.text';"
        " choose the field that they have, 'doc', with --text_field, or fix those rows"
    )


def test_names_with_commas_and_points_are_found_first(here):
    write("a.jsonl", [{"a,b": "1", "a.b": "2", "a": {"b": "3"}, "b": "4"}])
    assert [read("a.jsonl", text_field=name) for name in ("a,b", "a.b", "b,a.b")] == [["1"], ["2"], ["4\n\n2"]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_the_only_chat_of_the_rows_is_the_text(here, capsys, name):
    source.note.cache_clear()
    write(name, [{"id": "0", "conversations": SHAREGPT}, {"id": "1", "conversations": []}])
    assert read(name) == ["human: hi\n\ngpt: hello\n\nyou"]
    assert capsys.readouterr().err == f"note: the text of {name} is in its field 'conversations'\n"


def test_chats_with_parts_and_silent_turns(here):
    write("a.json", [{"messages": OPENAI}])
    assert read("a.json") == ["user: what\nis it?\n\nassistant: a fox"]
    write("a.jsonl", [{"messages": OPENAI, "title": "t"}])
    assert read("a.jsonl", text_field="title,messages") == ["t\n\nuser: what\nis it?\n\nassistant: a fox"]


@pytest.mark.parametrize(
    "value", [["one", "two"], [{"who": "a", "what": "b"}], [{"role": "user", "content": {"a": 1}}], [{"role": "actor"}]]
)
def test_lists_that_are_no_chat_are_refused(here, value):
    write("a.jsonl", [{"talk": value}])
    assert refusal("a.jsonl", text_field="talk").startswith("row 1 of a.jsonl holds a value of type list, not text: ")
    assert refusal("a.jsonl", text_field="talk,talk").startswith("row 1 of a.jsonl holds a value of type list")


@pytest.mark.parametrize(
    ("row", "several"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "instruction,input,output"),
        ({"instruction": "a", "context": "b", "response": "c", "category": "d"}, "instruction,context,response"),
        ({"id": "1", "Question": "a", "Answer": "b"}, "Question,Answer"),
    ],
)
def test_fields_that_belong_together_are_suggested(here, row, several):
    write("a.jsonl", [row] * 2)
    message = f"no field 'text' in a.jsonl; it has: {', '.join(row)}; choose one with --text_field"
    assert refusal("a.jsonl") == f"{message}, or join several, as in --text_field {several}"
    assert read("a.jsonl", text_field=several)[0].startswith("a\n\nb")


def test_what_save_to_disk_wrote(here):
    import datasets

    splits = {
        name: datasets.Dataset.from_dict({"n": [1, 2], "text": [name, None]})
        for name in ("test", "train", "validation")
    }
    datasets.DatasetDict(splits).save_to_disk("set")
    Path("set/train/cache-0a1b.arrow").write_text("damaged")
    assert read("set") == read("set/train") == ["train"]
    assert read("set", held_out=True) == ["validation"]


def test_arrow_files_of_other_programs_and_damaged_ones(here):
    import pyarrow as pa

    table = pa.table({"text": [str(number) for number in range(1_000)]})
    with pa.OSFile("a.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert read("a.arrow") == [str(number) for number in range(1_000)]
    with pa.OSFile("b.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    whole = Path("b.arrow").read_bytes()
    assert read("b.arrow") == read("a.arrow")
    for damaged in (b"", b"text", whole[:-8], whole[: len(whole) // 2], b"ARROW1" + whole):
        Path("c.arrow").write_bytes(damaged)
        assert refusal("c.arrow").startswith("cannot read c.arrow: ")


def test_a_damaged_arrow_file_does_not_end_the_process(here):
    import numpy as np

    write("a.arrow", [{"text": text} for text in ("one", "four", "sixsix")])
    offsets = np.array([0, 3, 7, 13], dtype="<i4").tobytes()
    whole = Path("a.arrow").read_bytes()
    assert whole.count(offsets) == 1
    Path("a.arrow").write_bytes(whole.replace(offsets, np.array([0, 3, 7, 2**31 - 1], dtype="<i4").tobytes()))
    assert refusal("a.arrow").startswith("cannot read a.arrow: In column 0: Invalid: ")


@pytest.mark.parametrize(
    "name", ["createdAt", "created_at", "doc.id", "file_path", "filename", "file", "idx", "docID", "sha", "slug"]
)
def test_what_only_names_a_row_is_never_its_text(here, name):
    write("a.jsonl", [{name: "1"}] * 3)
    assert refusal("a.jsonl") == f"no field 'text' in a.jsonl; it has: {name}; choose one with --text_field"
    write("b.jsonl", [{name: "1", "content": "one"}])
    assert read("b.jsonl") == ["one"]


@pytest.mark.parametrize("name", ["chat", "format", "grid", "valid", "candidate", "sometime", "Body"])
def test_names_that_only_end_as_those_do_may_be_the_text(here, name):
    write("a.jsonl", [{name: "one"}])
    assert read("a.jsonl") == ["one"]


def test_a_field_that_is_empty_in_the_first_rows_could_be_meant(here):
    write("a.jsonl", [{"title": "t", "body": None}] * 40 + [{"title": "t", "body": "one"}])
    assert refusal("a.jsonl") == "no field 'text' in a.jsonl; it has: title, body; choose one with --text_field"
    assert read("a.jsonl", text_field="body") == ["one"]
