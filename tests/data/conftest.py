"""What the tests of sources share."""

import codecs

import pytest

from slm.data.source import END_OF_TEXT, Piece, Source
from slm.data.sources import open_source
from slm.data.tokenizer import gpt2
from slm.errors import UserError

MARKS = {  # encoding -> its byte order mark
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


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


def write_parquet(file, **columns):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), file)


def source_of(*documents, fingerprint="f"):
    """A source whose documents are lists of pieces."""
    pieces = [
        Piece(text, i + 1 == len(parts))
        for parts in ([d] if isinstance(d, str) else d for d in documents)
        for i, text in enumerate(parts)
    ]
    return Source("made up", fingerprint, None, lambda: iter(pieces))


def texts(tokens, tokenizer=None):
    """The bytes of these tokens, without the ends of text."""
    return (tokenizer or gpt2()).decode_bytes(tokens.ids.tolist())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
