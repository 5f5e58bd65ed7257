"""What the user asks to train on -> a corpus: training and validation tokens, and the tokenizer that made them.

The way there: open the source, choose what is kept for validation, make the tokenizer from the rest, and encode both.
All of it is done once; the next run finds the tokens in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from slm.config.train import DataConfig
from slm.data import split
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
from slm.data.sources import how_to_read, open_source, validation_source
from slm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """A text divided into training and validation tokens."""

    train: Tokens
    val: Tokens
    tokenizer: Tokenizer
    description: str
    fingerprint: str  # of everything that the tokens depend on
    held_out: float | None = None  # share of the text's bytes that validation has; None: it has a text of its own
    caution: str = ""  # a line where less, or another share, is held out than a validation loss needs


def prepare(config: DataConfig, vocab_size: int, tokenizer: Tokenizer | None = None) -> Corpus:
    """The tokens of `config.dataset`, from the cache where it has them; with `tokenizer`, or the one of `config`.

    Raises UserError where the text cannot be read, or is too short to divide.
    """
    how = how_to_read(config)
    source = open_source(config.dataset, **how, held_out=False)
    if config.val_dataset is None:
        val_source = validation_source(config.dataset, **how)
    else:
        val_source = open_source(config.val_dataset, **how, held_out=True)
    new = _NewCorpus(source, val_source, config, vocab_size, tokenizer, open_cache(config.cache_dir))
    if not has_folder(new.cache, new.facts()):
        new.encode_parts()
    folder = get_folder(new.cache, new.facts(), new.write)

    tokenizer = _read_tokenizer(folder)
    train, val = (read_tokens(folder, split, tokenizer.vocab_size) for split in ("train", "val"))
    if val_source:
        description = f"{source.description}; validation: {val_source.description}"
        return Corpus(train, val, tokenizer, description, folder.name)
    if not len(val):  # the text is too short to be divided by documents or pieces
        train, val = _hold_out_end(train, config.val_fraction, tokenizer)
    share = val.text_bytes / (train.text_bytes + val.text_bytes)
    return Corpus(
        train, val, tokenizer, source.description, folder.name, share, _caution(train, val, config.val_fraction)
    )


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
        facts: dict[str, object] = {"source": self.source.fingerprint}
        if self.val_source:
            facts["validation"] = self.val_source.fingerprint
        else:
            facts |= {"validation": self.config.val_fraction, "rule": split.RULE}
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
    """Which pieces of `source` are held out for validation, (pieces,), as `slm.data.split.choose` has it.

    cache: what is found in the parts of a large text is kept there.
    """
    return split.choose(*hash_pieces(source, cache), fraction)


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
        progress = tqdm(
            total=source.size_bytes, desc="training the tokenizer",
            unit="B", unit_scale=True, unit_divisor=1000, leave=False, delay=0.5,
        )  # fmt: skip

        def texts() -> Iterator[str]:
            for piece in in_training(source, in_val):
                yield piece.text
                progress.update(len(piece.text.encode(errors="surrogatepass")))

        with progress:
            return tokenizers.train_bpe(texts(), vocab_size)

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


def _hold_out_end(tokens: Tokens, fraction: float, tokenizer: Tokenizer) -> tuple[Tokens, Tokens]:
    """`tokens` without those at the end that are held out, and those: at least two, so that there is a target."""
    wanted, _, _ = split.bytes_to_hold_out(tokens.text_bytes, fraction)
    from_end = np.cumsum(tokenizer.byte_counts[tokens.ids[::-1]])  # (N,): bytes of the last 1, 2, ... tokens
    held_out = max(2, int(np.searchsorted(from_end, wanted, side="right")))
    held_out = max(1, min(held_out, len(tokens) - 1))
    first, last = (_tokens(ids, tokenizer) for ids in (tokens.ids[:-held_out], tokens.ids[-held_out:]))
    return first, last


def _tokens(ids: npt.NDArray[np.integer[Any]], tokenizer: Tokenizer) -> Tokens:
    """A stretch of a split, which may end inside a document."""
    ends = int((ids == tokenizer.end_of_text).sum()) + int(ids[-1] != tokenizer.end_of_text)
    return Tokens(ids, ends, int(tokenizer.byte_counts[ids].sum()))


def _caution(train: Tokens, val: Tokens, fraction: float) -> str:
    """A line where fewer tokens are held out than a loss can be measured on, or not the share asked for; else ""."""
    total = train.text_bytes + val.text_bytes
    _, fewest, most = split.bytes_to_hold_out(total, fraction)
    if val.text_bytes >= split.LEAST_BYTES / 2 and fewest <= val.text_bytes <= most:
        return ""
    return (
        f"the validation loss will be rough: {len(val):,} tokens are held out, {val.text_bytes / total:.1%} of the"
        " text; give more text, or some for validation with --val_dataset"
    )
