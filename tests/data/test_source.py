"""Text -> pieces: what a document is, and where a long one is cut."""

from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data import source as module
from slm.data.source import END_OF_TEXT, pieces_of
from slm.data.sources import open_source
from tests.data.conftest import joined

# GPT-2's division of text into words (Radford et al., 2019)
GPT2 = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def test_a_text_is_one_document(here):
    Path("a.txt").write_text("Once upon a time.\n\nThe end.\n")
    assert list(open_source("a.txt").pieces()) == [("Once upon a time.\n\nThe end.", True)]


def test_the_end_of_text_parts_documents_and_white_space_around_it_goes(here):
    Path("a.txt").write_text("<|endoftext|>\n\n one \n<|endoftext|>\n \n<|endoftext|>two\n\nlines<|endoftext|>")
    assert list(open_source("a.txt").pieces()) == [("one", True), ("two\n\nlines", True)]


def test_a_long_document_is_cut_before_the_first_blank_line_after_2048_characters():
    text = "a" * 2000 + "\n\n" + "b" * 100 + " \n \n\n" + "c " * 500 + "\n\nd"
    assert list(pieces_of([text])) == [
        ("a" * 2000 + "\n\n" + "b" * 100, False),
        (" \n \n\n" + "c " * 500 + "\n\nd", True),
    ]


def test_white_space_that_began_before_2048_characters_is_no_place_to_cut():
    text = "a" * 2047 + "\n\n\n\n" + "b" * 2000
    assert list(pieces_of([text])) == [(text, True)]
    assert [len(piece.text) for piece in pieces_of(["a" + text])] == [2048, 2004]


def test_without_blank_lines_a_document_is_cut_at_white_space_after_16384_characters():
    text = "abcdef \n" * 5000 + "end"
    pieces = list(pieces_of([text]))
    assert [len(piece.text) for piece in pieces] == [16390, 16384, 40003 - 32774]
    assert [piece.text[:4] for piece in pieces] == ["abcd", " \nab", " \nab"]


BITS = ["word", "I'm", "12", "é", "...", " ", "\n", "\n\n", " \n ", "\t", "\xa0", "\x1c", "\u2028", "x" * 20, " " * 40]
BITS += ["\n" * 30, "<|end", "<|endof", "text|>", END_OF_TEXT]
TEXTS = st.lists(st.sampled_from(BITS), max_size=60).map("".join)
WORDS = st.sampled_from(["word ", "I'm  ", ". \n", "a\xa0", "b\x1c ", "\n \n"])


def test_without_white_space_a_document_is_cut_after_65536_characters():
    assert [len(piece.text) for piece in pieces_of(["a" * 150_000])] == [65536, 65536, 18928]


def test_white_space_at_the_end_of_a_long_document_goes_wherever_blocks_end():
    blocks = ["a" * 70_000, " ", "\n" * 70_000, " ", "<|endof", "text|>", " b", "<|endof", "text"]
    assert joined(pieces_of(blocks)) == ["a" * 70_000, "b<|endoftext"]


@given(TEXTS, st.integers(1, 30))
@settings(max_examples=400, deadline=None)
def test_pieces_do_not_depend_on_blocks_and_join_to_the_documents(text, size):
    with pytest.MonkeyPatch.context() as patch:
        for name, length in {"LEAST": 10, "LONG": 30, "MOST": 80}.items():
            patch.setattr(module, name, length)
        whole = list(pieces_of([text]))
        assert list(pieces_of(text[i : i + size] for i in range(0, len(text), size))) == whole
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
    pieces = list(pieces_of(text[i : i + 4096] for i in range(0, len(text), 4096)))
    if all(len(piece.text) < 65_536 for piece in pieces):  # else one was cut where there was nothing better
        assert [word for piece in pieces for word in GPT2.findall(piece.text)] == GPT2.findall(text)


def test_an_information_separator_is_white_space_to_python_but_not_to_gpt2():
    text = "a.\x1c" * 7000
    pieces = list(pieces_of([text + "b"]))
    assert [len(piece.text) for piece in pieces] == [21_001]
    assert len(GPT2.findall(text)) == 14_000
