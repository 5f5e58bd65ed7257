"""What the user asks to train on -> a corpus: training and validation tokens, and the tokenizer that made them.

The way there: open the source, choose what is kept for validation, make the tokenizer from the rest, and encode both.
All of it is done once; the next run finds the tokens in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from slm.config.train import DataConfig
from slm.data import tokenizer as tokenizers
from slm.data.cache import get_folder, has_folder, open_cache, reporting_damage
from slm.data.encoding import (
    Choice,
    Tokens,
    count_tokens,
    digest_of,
    encode_parts,
    hash_pieces,
    in_training,
    parts_of,
    read_tokens,
    write_tokens,
)
from slm.data.source import Source
from slm.data.sources import open_source, validation_source
from slm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """A text divided into training and validation tokens."""

    train: Tokens
    val: Tokens
    tokenizer: Tokenizer
    description: str
    fingerprint: str  # of everything that the tokens depend on


def prepare(config: DataConfig, vocab_size: int, tokenizer: Tokenizer | None = None) -> Corpus:
    """The tokens of `config.dataset`, from the cache where it has them; with `tokenizer`, or the one of `config`.

    Raises UserError where the text cannot be read, or is too short to divide.
    """
    source = open_source(config.dataset, text_field=config.text_field, errors=config.errors)
    if config.val_dataset is None:
        val_source = validation_source(config.dataset, text_field=config.text_field)
    else:
        val_source = open_source(config.val_dataset, text_field=config.text_field, errors=config.errors, held_out=True)
    new = _NewCorpus(source, val_source, config, vocab_size, tokenizer, open_cache(config.cache_dir))
    if not has_folder(new.cache, new.facts()):
        new.encode_parts()
    folder = get_folder(new.cache, new.facts(), new.write)

    tokenizer = _read_tokenizer(folder)
    train, val = read_tokens(folder, "train"), read_tokens(folder, "val")
    if not len(val):  # one short piece of text: its end is kept for validation
        held_out = max(2, math.ceil(config.val_fraction * len(train)))
        train, val = _divide(train, held_out, tokenizer)
    description = source.description + (f"; validation: {val_source.description}" if val_source else "")
    return Corpus(train, val, tokenizer, description, folder.name)


@dataclass(frozen=True)
class _NewCorpus:
    """A corpus that the cache may not have: what it is made of, and how."""

    source: Source
    val_source: Source | None  # None: a part of `source` is kept for validation
    config: DataConfig
    vocab_size: int
    given_tokenizer: Tokenizer | None  # None: it is made for the text
    cache: Path

    def facts(self) -> dict[str, object]:
        """Everything that the corpus depends on."""
        validation = self.val_source.fingerprint if self.val_source else self.config.val_fraction
        facts: dict[str, object] = {"source": self.source.fingerprint, "validation": validation}
        if self.given_tokenizer:
            return {**facts, "vocabulary": self.given_tokenizer.fingerprint}
        return {**facts, "tokenizer": self.config.tokenizer, "vocab_size": self.vocab_size}

    @cached_property
    def in_val(self) -> Choice | None:
        """The pieces of `source` that are kept for validation; None where validation has a source of its own."""
        return None if self.val_source else choose_validation(self.source, self.config.val_fraction, self.cache)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus, made from the training part of `source` unless it was given."""
        if self.given_tokenizer:
            return self.given_tokenizer
        return _make_tokenizer(self.config.tokenizer, self.vocab_size, self.source, self.in_val, self.cache)

    def encode_parts(self) -> None:
        """Encode the parts of large texts, together with all processes that make the same corpus."""
        if parts_of(self.source):
            encode_parts(self.cache, self.source, self.tokenizer, self.in_val)
        if self.val_source and parts_of(self.val_source):
            encode_parts(self.cache, self.val_source, self.tokenizer)

    def write(self, folder: Path) -> None:
        """Write the corpus into a folder of the cache, which one process does alone."""
        _write_tokenizer(folder, self.tokenizer)
        write_tokens(folder, self.source, self.tokenizer, self.in_val, cache=self.cache)
        if self.val_source:
            write_tokens(folder, self.val_source, self.tokenizer, split="val", cache=self.cache)


def choose_validation(source: Source, fraction: float, cache: Path | None = None) -> Choice:
    """Which pieces of `source` are kept for validation, (pieces,): about `fraction` of its documents, at least one.

    A document is chosen by a hash of its text, so documents added later move no other (except for the one that is
    chosen where the hash alone would choose none). Where there are fewer than 1 / `fraction` documents, as in a text
    file without separators, each piece of some thousand characters is chosen by its own hash. A single piece is not
    chosen.

    cache: what is found in the parts of a large text is kept there.
    """
    hashes, starts = hash_pieces(source, cache)
    documents = np.cumsum(starts, dtype=np.int64) - 1  # (pieces,): the document of each piece
    by_document = documents[-1] + 1 >= 1 / fraction
    if by_document:
        hashes = np.add.reduceat(hashes, np.flatnonzero(starts))  # (documents,): wraps around
    chosen = hashes < np.uint64(fraction * 2.0**64)
    if len(hashes) > 1:
        chosen[hashes.argmin()], chosen[hashes.argmax()] = True, False
    return chosen[documents] if by_document else chosen


def _make_tokenizer(kind: str, vocab_size: int, source: Source, in_val: Choice | None, cache: Path) -> Tokenizer:
    """The tokenizer for the training part of `source`."""
    if kind == "bpe":
        return _train_bpe(vocab_size, source, in_val, cache)
    gpt2 = tokenizers.gpt2()
    if vocab_size == gpt2.vocab_size:
        return gpt2
    return tokenizers.cut(count_tokens(source, gpt2, in_val, cache), vocab_size)


def _train_bpe(vocab_size: int, source: Source, in_val: Choice | None, cache: Path) -> Tokenizer:
    def train() -> Tokenizer:
        return tokenizers.train_bpe((piece.text for piece in in_training(source, in_val)), vocab_size)

    if not parts_of(source):
        return train()
    facts = {"bpe": source.fingerprint, "validation": digest_of(in_val), "vocab_size": vocab_size}
    return _read_tokenizer(get_folder(cache, facts, lambda folder: _write_tokenizer(folder, train())))


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    state = {key: value for key, value in tokenizer.to_state().items() if value is not None}
    np.savez(folder / "tokenizer.npz", **state)  # type: ignore[arg-type]


def _read_tokenizer(folder: Path) -> Tokenizer:
    with reporting_damage(folder), np.load(folder / "tokenizer.npz", allow_pickle=False) as state:
        return Tokenizer.from_state({"gpt2_ids": None, **state})


def _divide(tokens: Tokens, held_out: int, tokenizer: Tokenizer) -> tuple[Tokens, Tokens]:
    """`tokens` without the last `held_out`, and those."""
    parts = tokens.ids[:-held_out], tokens.ids[-held_out:]
    first, last = (Tokens(part, 1, int(tokenizer.byte_counts[part].sum())) for part in parts)
    return first, last
