"""Random corpora in every format must come back whole; damaged and hostile files must be read or refused in one line.

    OMP_NUM_THREADS=1 python -m tests.fuzz.campaign --corpora 5000 --files 2000 --seed 0

A corpus is some documents, written in a random format, with a random delimiter, encoding, compression and size of the
blocks in which it is read. A damaged file is such a corpus that was cut short, overwritten, mixed with another one or
given another name; a hostile one is made to take much time or memory. For these, ROW_LIMIT is 256 kB. Prints one line
of JSON; any other exception than UserError ends the campaign with the number of the case.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pyarrow as pa
from pyarrow import parquet

from slm.data import arrow_rows, csv_rows, json_rows, source, text_file
from slm.data.source import END_OF_TEXT
from slm.data.sources import open_source
from slm.errors import UserError
from tests.data.conftest import MARKS, joined

PARTS = [
    *",;\t|\"'\\{}[]:\n ", "\r\n", "\r", "\n\n", "0,5", "1.000", "a", "The end", " upon a time", "id", "text", "é",
    "“", "猫", "😀",
    "<|endof", "//", "#", "-", "\u2028", "\x85", "null", "NA", "=1+1", "http://", "ß" * 40, "once upon a time, " * 200,
]  # fmt: skip
LIMIT = 1 << 18


def corpus(dice: random.Random) -> list[str]:
    """Documents, some of which are empty or equal to others."""
    count = dice.choice([1, 2, 3, 8, 40])
    texts = ["w" + "".join(dice.choices(PARTS, k=dice.randint(0, 30))) for _ in range(count)]
    return [dice.choice([text, text, text, texts[0], ""]) for text in texts[:-1]] + [texts[-1]]


def read_as(text: str) -> str:
    """The document that is learned from a text: with "\\n" for every line's end, without white space around it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def as_table(dice: random.Random, texts: list[str], delimiter: str) -> str:
    out = io.StringIO()
    quoting, end = dice.choice([(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_ALL, "\n")])
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    kind = dice.choice(["table", "table", "one column", "no name"])
    if kind == "no name" and quoting == csv.QUOTE_MINIMAL and any(character in texts[0] for character in ",;\t|"):
        kind = "one column"  # its first row could be a header
    if kind == "table":
        names = ["id", "text", *dice.sample(["score", "note, or; more", "lang", ""], dice.randint(0, 3))]
        dice.shuffle(names)
        writer.writerow(names)
        others = {"id": "7", "score": "0,5", "note, or; more": "a|b", "lang": "de", "": ""}
        writer.writerows([{**others, "text": text}[name] for name in names] for text in texts)
    else:
        first = ["text"] if kind == "one column" else [texts[0]]
        writer.writerows([[name] for name in first] + [[text] for text in texts[kind == "no name" :]])
    return out.getvalue()


def as_json(dice: random.Random, texts: list[str], lines: bool) -> str:
    rows: list[object] = [dice.choice([{"id": 1, "text": text, "more": [None, {"a": [1.5]}]}, text]) for text in texts]
    write = json.JSONEncoder(ensure_ascii=dice.random() < 0.5, indent=dice.choice([None, None, 1])).encode
    return dice.choice(["\n", "\n\n", "\r\n"]).join(map(write, rows)) if lines else write(rows)


def as_arrow(dice: random.Random, texts: list[str], suffix: str) -> bytes:
    column = pa.array([*texts, None], type=dice.choice(["string", "large_string"]))
    table = pa.table({"id": range(len(column)), "text": column})
    out = io.BytesIO()
    if suffix == ".arrow":
        with dice.choice([pa.ipc.new_stream, pa.ipc.new_file])(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=dice.choice([1, 7, 1000]))
    else:
        how = {"compression": dice.choice(["none", "snappy", "zstd"]), "use_dictionary": dice.random() < 0.5}
        parquet.write_table(table, out, row_group_size=dice.choice([1, 7, 1000]), **how)
    return out.getvalue()


def written(dice: random.Random, texts: list[str]) -> tuple[str, bytes, str]:
    """The name and the content of a file of these documents, and the encoding to pass."""
    suffix = dice.choice(
        [".txt", ".md", ".csv", ".csv", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow"]
    )
    if suffix in (".parquet", ".arrow"):
        return f"a{suffix}", as_arrow(dice, texts, suffix), "utf-8"
    if suffix in (".csv", ".tsv"):
        text = as_table(dice, texts, dice.choice(",;\t|"))
    elif suffix in (".txt", ".md"):
        text = dice.choice(["", "\n", "\r\n"]).join([END_OF_TEXT.join(texts), ""])
    else:
        text = as_json(dice, texts, suffix != ".json")
    encoding, mark, passed = dice.choice(
        [("utf-8", b"", "utf-8")] * 3
        + [(encoding, mark, "utf-8") for encoding, mark in MARKS.items()]
        + [(encoding, b"", encoding) for encoding in ("gb18030", "utf-16-le", "utf-16-be", "utf-32-le", "utf-16")]
    )
    content = mark + text.encode(encoding)
    packed = dice.choice(["", "", ".gz", ".zst"])
    if packed == ".gz":
        content = gzip.compress(content, 1)
    elif packed == ".zst":
        content = pa.compress(content, codec="zstd", asbytes=True)
    return f"a{suffix}{packed}", content, passed


def check_corpus(dice: random.Random, folder: Path) -> str:
    """Write and read a random corpus; returns its suffixes."""
    texts = corpus(dice)
    name, content, encoding = written(dice, texts)
    path = folder / name
    path.write_bytes(content)
    expected = [read_as(text) for text in texts if read_as(text)]
    with mock.patch.object(text_file, "BLOCK", dice.choice([3, 61, 1 << 12, 1 << 20])):
        found = open_source(str(path), encoding=encoding)
        assert joined(found.pieces()) == expected, f"{name} {encoding}: {content[:2000]!r}"
        if parts := found.parts(dice.choice([50, 1000])):
            assert joined(piece for part in parts for piece in part.pieces()) == expected, name
    path.unlink()
    return name[1:]


# --- Damage ---


def damaged(dice: random.Random) -> tuple[str, bytes]:
    name, content, _ = written(dice, corpus(dice))
    place = dice.randrange(len(content))
    how = dice.choice(["cut", "bytes", "zeros", "mixed", "renamed", "hostile", "hostile"])
    if how == "cut":
        content = content[:place]
    elif how == "bytes":
        changed = bytearray(content)
        for _ in range(dice.choice([1, 3, 30])):
            changed[dice.randrange(len(content))] = dice.randrange(256)
        content = bytes(changed)
    elif how == "zeros":
        content = content[:place] + bytes(dice.choice([1, 2, 300])) + content[place:]
    elif how == "mixed":
        content = content[:place] + written(dice, corpus(dice))[1]
    elif how == "renamed":
        name = written(dice, corpus(dice))[0]
    else:
        return hostile(dice)
    return name, content


def hostile(dice: random.Random) -> tuple[str, bytes]:
    """A small file that is long when it is read, or deep, or both."""
    times = LIMIT * dice.choice([1, 3])
    if dice.random() < 0.2:
        table = pa.table(
            {"text": pa.array(["a" * (LIMIT // dice.choice([1, 2, 1000]))]).take([0] * dice.choice([2, 900]))}
        )
        out = io.BytesIO()
        parquet.write_table(table, out, compression="zstd", use_dictionary=dice.random() < 0.5)
        return "a.parquet", out.getvalue()
    suffix = dice.choice([".txt", ".csv", ".tsv", ".jsonl", ".json"])
    start = dice.choice(
        ["", "a", "text\n", "id,text\n1,", 'id;text\n1;"', '{"text": "', "[", '["a", "', '[{"text": ', "\0"]
    )
    part = dice.choice(
        [" ", "\n", "\r", ",", '"', '""', "[", '{"a":', "a", "once upon ", '"x\n",', "\t", "9", "\\", "\x00", "é"]
    )
    content = (start + part * (times // len(part))).encode()
    packed = dice.choice(["", ".gz", ".zst"])
    if packed:
        content = gzip.compress(content, 1) if packed == ".gz" else pa.compress(content, codec="zstd", asbytes=True)
    return f"a{suffix}{packed}", content


def check_damaged(dice: random.Random, folder: Path) -> str:
    """Read a damaged or hostile file; returns what came of it."""
    name, content = damaged(dice)
    path = folder / name
    path.write_bytes(content)
    errors = dice.choice(["strict", "replace", "ignore"])
    try:
        for piece in open_source(str(path), errors=errors).pieces():
            assert 0 < len(piece.text) <= LIMIT, name
    except UserError as error:
        said = str(error)
    else:
        said = ""
    path.unlink()
    assert "\n" not in said, said
    assert len(said) < 2000, said[:3000]
    return "refused" if said else "read"


@contextmanager
def naming(case: str) -> Iterator[None]:
    """Say in which case something went wrong."""
    try:
        yield
    except Exception as error:
        raise AssertionError(case) from error


def campaign(corpora: int, files: int, seed: int) -> dict[str, object]:
    """Try that many corpora and files; what came of them, the slowest file and the peak of memory."""
    slowest, results = 0.0, Counter[str]()
    formats = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(corpora):
            with naming(f"corpus {number} of seed {seed}"):
                formats[check_corpus(random.Random(f"{seed} corpus {number}"), Path(folder))] += 1
        with ExitStack() as stack:
            for module in (source, arrow_rows, csv_rows, json_rows):
                stack.enter_context(mock.patch.object(module, "ROW_LIMIT", LIMIT))
            for number in range(files):
                begun = time.process_time()
                with naming(f"file {number} of seed {seed}"):
                    results[check_damaged(random.Random(f"{seed} file {number}"), Path(folder))] += 1
                slowest = max(slowest, time.process_time() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    kinds = {"corpora": corpora, "kinds of files": len(formats), "files": files}
    return {**kinds, **results, "slowest file, s": round(slowest, 2), "peak memory, MB": peak}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=int, default=5000)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(campaign(**vars(parser.parse_args()))))
