"""Pieces -> token files: what is in them, whatever blocks the text is encoded in."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data import encoding
from slm.data.corpus import choose_validation
from slm.data.encoding import encode
from slm.data.source import END_OF_TEXT
from slm.data.sources import open_source
from slm.data.stories import stories
from slm.data.tokenizer import gpt2
from slm.errors import UserError
from tests.data.conftest import source_of, texts

GPT2 = gpt2()


def test_each_document_is_closed_by_the_end_of_text(tmp_path):
    tokens = encode(source_of("Hello world", "A cat"), gpt2(), str(tmp_path))
    assert tokens.ids.tolist() == [15496, 995, 50256, 32, 3797, 50256]
    assert tokens.ids.dtype == np.uint16
    assert (tokens.documents, tokens.text_bytes) == (2, 16)


def test_pieces_of_a_document_are_not_closed(tmp_path):
    tokens = encode(source_of(["Hello", " world"], "A"), gpt2(), str(tmp_path))
    assert tokens.ids.tolist() == [15496, 995, 50256, 32, 50256]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), st.integers(1, 40))
def test_block_size_changes_nothing(tmp_path_factory, parts, block):
    source = source_of(*[part for part in parts if END_OF_TEXT not in part] or ["x"])
    expected = encode(source, GPT2, str(tmp_path_factory.mktemp("a"))).ids.tolist()
    before = encoding.BLOCK_CHARACTERS
    encoding.BLOCK_CHARACTERS = block
    try:
        assert encode(source, GPT2, str(tmp_path_factory.mktemp("b"))).ids.tolist() == expected
    finally:
        encoding.BLOCK_CHARACTERS = before


def test_a_long_file_gives_the_tokens_of_its_whole_text(tmp_path):
    text = "\n\n".join(stories(300)) + "\n" + "x" * 70_000 + " the end"
    (tmp_path / "long.txt").write_text(text)
    source = open_source(str(tmp_path / "long.txt"))
    assert len(list(source.pieces())) > 10
    tokens = encode(source, gpt2(), str(tmp_path / "cache"))
    assert texts(tokens) == text.encode()
    stories_alone = "\n\n".join(stories(300))
    head = gpt2().encode(stories_alone)[:-1]
    assert tokens.ids[: len(head)].tolist() == head.tolist()


def test_a_document_divided_between_the_splits_ends_in_each(tmp_path):
    parts = [f"{number} is a part of the book. " for number in range(40)]
    source = source_of(parts)
    chosen = choose_validation(source, 0.1)
    pieces = list(encoding._with_split(source, chosen))
    assert 0 < chosen.sum() < 20
    assert [split for _, split in pieces] == chosen.astype(int).tolist()
    borders = [number for number in range(39) if chosen[number] != chosen[number + 1]]
    assert [number for number, (piece, _) in enumerate(pieces) if piece.ends_document] == [*borders, 39]


def test_a_text_that_changes_while_it_is_read_is_refused():
    for chosen in (np.zeros(2, dtype=bool), np.zeros(4, dtype=bool)):
        with pytest.raises(UserError, match="changed while it was read"):
            list(encoding._with_split(source_of("a", "b", "c"), chosen))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_split_is_not_in_memory_once_it_was_opened(tmp_path):
    """A map counts as memory where it was looked at: here it would be 256 MB."""
    (tmp_path / "train.json").write_text('{"tokens": 128000000, "documents": 1, "text_bytes": 1, "dtype": "uint16"}')
    with (tmp_path / "train.bin").open("wb") as file:
        file.truncate(256_000_000)
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom slm.data.encoding import read_tokens\n"
        "def peak():\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\ntokens = read_tokens(Path(sys.argv[1]), 'train', 50257)\nprint(len(tokens), peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    count, more = map(int, run.stdout.split())
    assert count == 128_000_000
    assert more < 40_000
