"""Hostile files: memory is bounded by ROW_LIMIT, which is small here, and the error names the file and the row."""

import gzip
import json
from pathlib import Path

import pytest

from slm.data import arrow_rows, csv_rows, json_rows, source, text_file
from slm.data.sources import open_source
from tests.data.conftest import read, refusal, write_parquet

LIMIT = 1 << 20
MEND = "is longer than 1 MB: divide it into rows, or save its text as .txt"


@pytest.fixture(autouse=True)
def small(monkeypatch, here):
    for module in (arrow_rows, csv_rows, json_rows, source, text_file):
        monkeypatch.setattr(module, "ROW_LIMIT", LIMIT)
    monkeypatch.setattr(text_file, "BLOCK", 1 << 12)


LONG = "once upon " * (LIMIT // 10 + 1000)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.json", f'["one",\n\n"{LONG}"]', 3),
        ("a.jsonl", f'{{"text": "one"}}\n{{"text": "{LONG}"}}\n', 2),
        ("b.jsonl", f'{{"text": "one"}}\n{{"text": "{LONG}', 2),
        ("a.csv", LONG, 1),
        ("b.csv", f"id,text\n1,{LONG}\n", 2),
        ("c.csv", 'id,text\n1,a\n2,"' + "once upon\n" * (LIMIT // 10 + 1000), 3),
        ("d.csv", 'id,text\n1,a\n2,b\n' + '"x\n",' * (LIMIT // 5 + 1000), 4),
        ("a.tsv", "id\ttext\n1\tb\n" + "\t" * LIMIT * 2, 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_rows_beyond_the_limit(name, content, line, packed):
    data = content.encode()
    Path(f"{name}.gz" if packed else name).write_bytes(gzip.compress(data) if packed else data)
    name += ".gz" * packed
    assert refusal(name) == f"the row of {name} that begins on line {line} {MEND}"


def test_rows_below_the_limit():
    text = LONG[: LIMIT - 100].rstrip()
    Path("a.jsonl").write_text(json.dumps({"text": text}) * 2)
    Path("a.csv").write_text(f'text\n"{text}"\n{text}\n')
    write_parquet("a.parquet", text=[text, text])
    assert read("a.*") == [text] * 6


def test_white_space():
    space = " \n" * LIMIT
    Path("a.txt").write_text(space)
    Path("b.txt").write_text(space + "b" + space[: LIMIT // 2] + "b<|endoftext|>" + space + "c")
    Path("c.txt").write_text("c" + space)
    Path("a.jsonl").write_text(f'{space}{{"text": "a"}}{space}{{"text": "b"}}{space}')
    Path("a.csv").write_text("text\n\na" + space + "b")
    assert "no text in 1 file" in refusal("a.txt")
    assert read("b.txt") == ["b" + space[: LIMIT // 2] + "b", "c"]
    assert refusal("c.txt") == "c.txt has 1 MB of white space in a row: remove it"
    assert read("a.jsonl") == read("a.csv") == ["a", "b"]


def test_plain_text_has_no_limit():
    Path("a.txt").write_text(LONG + LONG)
    assert len("".join(piece.text for piece in open_source("a.txt").pieces())) == 2 * len(LONG) - 1


def allocated(file):
    """The most that pyarrow holds while a file's rows are read."""
    import pyarrow as pa

    before = pa.total_allocated_bytes()
    return max(pa.total_allocated_bytes() for _ in open_source(file).pieces()) - before


def repeated(text, times):
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([text]))


def test_a_dictionary_of_a_parquet_file_may_repeat_a_long_text():
    import pyarrow as pa
    from pyarrow import parquet

    text = "a" * (LIMIT - 10)
    parquet.write_table(pa.table({"text": repeated(text, 256)}), "a.parquet", compression="zstd", store_schema=False)
    assert Path("a.parquet").stat().st_size < 4000
    assert read("a.parquet") == [text] * 256
    assert allocated("a.parquet") < 8 * LIMIT


def test_chats_that_repeat_a_long_turn():
    import pyarrow as pa
    from pyarrow import parquet

    turns = pa.StructArray.from_arrays([pa.array(["u"] * 400), repeated("b" * 10_000, 400)], ["role", "content"])
    rows = pa.ListArray.from_arrays(pa.array([0, 1, 1, 400], pa.int32()), turns)
    parquet.write_table(pa.table({"messages": rows}), "a.parquet", store_schema=False)
    assert refusal("a.parquet") == f"row 3 of a.parquet {MEND}"
    rows = pa.ListArray.from_arrays(pa.array([0, 1, 1, 60], pa.int32()), turns.slice(0, 60))
    parquet.write_table(pa.table({"messages": rows}), "b.parquet", store_schema=False)
    assert [len(document) for document in read("b.parquet")] == [10_003, 59 * 10_005 - 2]
    with pa.OSFile("a.arrow", "wb") as file, pa.ipc.new_stream(file, pa.schema({"text": pa.string()})) as writer:
        writer.write_batch(pa.record_batch({"text": ["one", None, LONG]}))
    assert refusal("a.arrow") == f"row 3 of a.arrow {MEND}"


def test_rows_that_compress_well():
    import pyarrow as pa
    from pyarrow import parquet

    for name, texts in (("a", ["a" * (LIMIT - 10)] * 200), ("b", ["a" * LIMIT] * 64 + [""] * 100_000)):
        parquet.write_table(pa.table({"text": texts}), f"{name}.parquet", compression="zstd", use_dictionary=False)
        assert "as no text can be" in refusal(f"{name}.parquet")
    write_parquet("c.parquet", text=["one", "a" * LIMIT * 2, "two"])
    assert refusal("c.parquet") == f"row 2 of c.parquet {MEND}"
