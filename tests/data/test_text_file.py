"""The bytes and the text of a file: compression, byte order marks, zero bytes, and what is said of other encodings."""

import codecs
import gzip
import json
from pathlib import Path

import pytest

from slm.data import text_file
from slm.data.sources import open_source
from tests.data.conftest import MARKS, read, refusal

TEXT = "Es war einmal, 猫 😀"
FILES = {
    "txt": f"{TEXT}\r\n<|endoftext|>two",
    "csv": f'id;text\r\n1;"{TEXT}"\r\n2;two\r\n',
    "tsv": f"id\ttext\n1\t{TEXT}\n2\ttwo\n",
    "jsonl": f'{json.dumps({"text": TEXT}, ensure_ascii=False)}\n{{"text": "two"}}\n',
    "json": json.dumps([TEXT, "two"], ensure_ascii=False),
}


def packed(content, how):
    import pyarrow as pa

    if how == ".gz":
        return gzip.compress(content)
    return pa.compress(content, codec="zstd", asbytes=True) if how == ".zst" else content


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("how", ["", ".gz", ".zst"])
def test_a_byte_order_mark_decides_in_every_format(here, monkeypatch, suffix, encoding, how):
    file = Path(f"a.{suffix}{how}")
    file.write_bytes(packed(MARKS[encoding] + FILES[suffix].encode(encoding), how))
    for errors in ("strict", "replace"):
        assert read(file, errors=errors) == [TEXT, "two"]
    assert read(file, encoding="cp1252") == [TEXT, "two"]
    monkeypatch.setattr(text_file, "BLOCK", 3)
    assert read(file) == [TEXT, "two"]


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["Once upon a time. ", "昔々、ある所に 猫が。" * 3])
def test_without_a_mark_the_encoding_is_suggested_and_never_replacement(here, suffix, encoding, text):
    Path(f"a.{suffix}").write_bytes(FILES[suffix].replace(TEXT, text * 20).encode(encoding))
    message = refusal(f"a.{suffix}")
    for errors in ("strict", "replace", "ignore"):
        assert refusal(f"a.{suffix}", errors=errors) == message
    assert message == f"a.{suffix} looks like {encoding} without a byte order mark: pass --encoding {encoding}"
    assert len(read(f"a.{suffix}", encoding=encoding)) >= 2 or suffix in ("csv", "json", "jsonl")


def test_text_of_another_encoding_is_not_told_to_be_replaced(here):
    for name, encoding in (("a", "latin-1"), ("b", "gb18030"), ("c", "koi8-r")):
        text = {"a": "Ærø, été, über. ", "b": "从前有一只小猫。", "c": "Жила-была кошка. "}[name] * 50
        Path(f"{name}.csv").write_bytes(f"text\n{text}\n".encode(encoding))
        assert "replace" not in refusal(f"{name}.csv")


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_zeros_are_never_learned(here, suffix):
    text = {"txt": "a cat{}", "csv": "text\na cat{}\n", "jsonl": '{{"text": "a cat{}"}}'}[suffix]
    content = text.format("\0" + " and a dog" * 50)
    Path(f"a.{suffix}").write_bytes(content.encode())
    zero = content.index("\0")
    assert refusal(f"a.{suffix}").startswith(f"byte {zero} of a.{suffix} is zero, which no text has")
    assert read(f"a.{suffix}", errors="replace") == ["a cat\ufffd" + " and a dog" * 50]
    Path(f"b.{suffix}").write_bytes(content.encode("utf-16-le"))
    assert "has zeros for characters" in refusal(f"b.{suffix}", encoding="utf-16-le")
    Path(f"c.{suffix}").write_bytes(b"cats " * 300_000 + b"\0")  # not in the first block
    assert refusal("c.txt").startswith("byte 1,500,000 of c.txt is zero") if suffix == "txt" else refusal(f"c.{suffix}")


def test_zst_of_several_frames_and_damaged(here):
    content = packed("Once upon a time é. ".encode() * 5000, ".zst")
    Path("a.txt.zst").write_bytes(content * 2)
    assert read("a.txt.zst") == [("Once upon a time é. " * 10_000).rstrip()]
    assert open_source("a.txt.zst").size_bytes is None
    Path("b.txt.zst").write_bytes(content[:-9])
    assert refusal("b.txt.zst").startswith("cannot read b.txt.zst: Truncated compressed stream")
    Path("c.txt.zst").write_bytes(b"text")
    assert refusal("c.txt.zst").startswith("cannot read c.txt.zst: ZSTD decompress failed")
    Path("d").mkdir()
    Path("d/train.JSONL.zst").write_bytes(packed(b'{"text": "one"}', ".zst"))
    Path("d/valid.jsonl.zst").write_bytes(packed(b'{"text": "two"}', ".zst"))
    assert read("d") == ["one"]


def test_a_marked_text_is_never_cut_at_bytes(here):
    """The bytes of the end of text may stand in UTF-16 by chance."""
    text = "猫" * 100 + b"<|endoftext|>".ljust(14, b" ").decode("utf-16-le") + "犬" * 100
    Path("a.txt").write_bytes(codecs.BOM_UTF16_LE + text.encode("utf-16-le"))
    assert read("a.txt") == [text]
    found = open_source("a.txt").parts(64)
    assert "".join(piece.text for part in found for piece in part.pieces()) == text
