"""Documents -> token files on disk: made once by all cores, memory-mapped ever after.

A token file is the flat stream of a split's ids, each document closed by `<|endoftext|>`, as uint16 (uint32 for more
than 65,536 ids). It lies in the cache under a name made of everything it depends on, and is moved there when whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from slm.config import DataConfig
from slm.cores import usable_cores
from slm.data import tokenizer as tokenizers
from slm.data.sources import END_OF_TEXT, Piece, Source, open_source, validation_source
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.files import sync, user_path

BLOCK_CHARACTERS = 1 << 18  # text that one call of the tokenizer gets: long enough for threads not to wait on Python
FORMAT = 1  # raise it when the same text would give other files


@dataclass(frozen=True)
class Tokens:
    """The ids of one split, (N,), and how much text they are."""

    ids: npt.NDArray[np.integer[Any]]
    documents: int
    text_bytes: int  # UTF-8, without the ends of text

    def __len__(self) -> int:
        return len(self.ids)

    def in_use(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Whether each token occurs, (vocab_size,)."""
        seen = np.zeros(vocab_size, dtype=bool)
        for start in range(0, len(self.ids), 1 << 24):  # an index as large as the text would not fit
            seen[self.ids[start : start + (1 << 24)]] = True
        return seen


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
    val_source = (
        validation_source(config.dataset, text_field=config.text_field, errors=config.errors)
        if config.val_dataset is None
        else open_source(config.val_dataset, text_field=config.text_field, errors=config.errors, held_out=True)
    )
    facts = {
        "source": source.fingerprint,
        "validation": val_source.fingerprint if val_source else config.val_fraction,
        **(
            {"tokenizer": config.tokenizer, "vocab_size": vocab_size}
            if tokenizer is None
            else {"vocabulary": tokenizer.fingerprint}
        ),
    }

    def make(folder: Path) -> None:
        in_val = None if val_source else choose_validation(source, config.val_fraction)
        made = tokenizer or _make_tokenizer(config.tokenizer, vocab_size, source, in_val)
        _write_tokenizer(folder, made)
        if val_source:
            _write_tokens(folder, source, made)
            _write_tokens(folder, val_source, made, split="val")
        else:
            _write_tokens(folder, source, made, in_val)

    folder = _cached(user_path(config.cache_dir), facts, make)
    tokenizer = _read_tokenizer(folder)
    train, val = _read_tokens(folder, "train"), _read_tokens(folder, "val")
    if not len(val):  # one short piece of text: its end is kept for validation
        held_out = max(2, math.ceil(config.val_fraction * len(train)))
        train, val = _divide(train, held_out, tokenizer)
    description = source.description + (f"; validation: {val_source.description}" if val_source else "")
    return Corpus(train, val, tokenizer, description, folder.name)


def encode(source: Source, tokenizer: Tokenizer, cache_dir: str) -> Tokens:
    """All tokens of `source`, from the cache where it has them."""
    facts = {"source": source.fingerprint, "vocabulary": tokenizer.fingerprint}
    return _read_tokens(
        _cached(user_path(cache_dir), facts, lambda folder: _write_tokens(folder, source, tokenizer)), "train"
    )


def choose_validation(source: Source, fraction: float) -> npt.NDArray[np.bool_]:
    """Which pieces of `source` are kept for validation, (pieces,): about `fraction` of its documents, at least one.

    A document is chosen by a hash of its text, so documents added later move no other (but for the one that is chosen
    where the hash alone would choose none). Where there are fewer than 1 / `fraction` documents, as in a text file
    without separators, each piece of some thousand characters is chosen by its own hash. A single piece is not chosen.
    """
    hashes, starts_document, starts = array("Q"), array("b"), True
    for piece in source.pieces():
        digest = hashlib.blake2b(piece.text.encode(errors="surrogatepass"), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little"))
        starts_document.append(starts)
        starts = piece.ends_document
    key = np.frombuffer(hashes, dtype=np.uint64)
    documents = np.cumsum(np.frombuffer(starts_document, dtype=np.int8), dtype=np.int64) - 1  # of each piece
    by_document = documents[-1] + 1 >= 1 / fraction
    if by_document:
        key = np.add.reduceat(key, np.flatnonzero(np.frombuffer(starts_document, dtype=np.int8)))  # wraps around
    chosen = key < np.uint64(fraction * 2.0**64)
    if len(key) > 1:
        chosen[key.argmin()], chosen[key.argmax()] = True, False
    return chosen[documents] if by_document else chosen


def _make_tokenizer(kind: str, vocab_size: int, source: Source, in_val: npt.NDArray[np.bool_] | None) -> Tokenizer:
    """The tokenizer for the training part of `source`."""
    in_training = (
        piece
        for piece, held_out in zip(source.pieces(), repeat(False) if in_val is None else in_val, strict=False)
        if not held_out
    )
    if kind == "bpe":
        return tokenizers.train_bpe((piece.text for piece in in_training), vocab_size)
    gpt2 = tokenizers.gpt2()
    if vocab_size == gpt2.vocab_size:
        return gpt2
    counts = np.zeros(gpt2.vocab_size, dtype=np.int64)
    for _, ids, _ in _encode_all(zip(in_training, repeat(0)), gpt2, source.size_bytes, "counting tokens"):
        counts += np.bincount(ids, minlength=gpt2.vocab_size)
    return tokenizers.cut(counts, vocab_size)


def _encode_all(
    pieces: Iterable[tuple[Piece, int]], tokenizer: Tokenizer, size_bytes: int | None, doing: str
) -> Iterator[tuple[int, npt.NDArray[np.uint32], int]]:
    """Encode (piece, split) pairs on all cores: yields (split, ids, bytes) in the order of each split's pieces."""
    workers = usable_cores()

    def ids_of(block: list[Piece]) -> tuple[npt.NDArray[np.uint32], int]:
        # Pieces are joined by the end of text, which is taken out again where the document goes on.
        ids = tokenizer.encode(END_OF_TEXT.join(piece.text for piece in block) + END_OF_TEXT)
        goes_on = [not piece.ends_document for piece in block]
        if any(goes_on):
            ids = np.delete(ids, np.flatnonzero(ids == tokenizer.end_of_text)[goes_on])
        return ids, int(tokenizer.byte_counts[ids].sum())

    def blocks() -> Iterator[tuple[int, list[Piece]]]:
        open_blocks: dict[int, tuple[list[Piece], int]] = {}
        for piece, split in pieces:
            block, length = open_blocks.get(split, ([], 0))
            block.append(piece)
            length += len(piece.text)
            if length >= BLOCK_CHARACTERS:
                yield split, block
                block, length = [], 0
            open_blocks[split] = (block, length)
        yield from ((split, block) for split, (block, _) in open_blocks.items() if block)

    progress = tqdm(total=size_bytes, desc=doing, unit="B", unit_scale=True, unit_divisor=1000, leave=False, delay=0.5)
    waiting: deque[tuple[int, Future[tuple[npt.NDArray[np.uint32], int]]]] = deque()
    with progress, ThreadPoolExecutor(workers) as pool:
        for split, block in chain(blocks(), repeat((0, None), 2 * workers)):
            if block is not None:
                waiting.append((split, pool.submit(ids_of, block)))
            if waiting and (block is None or len(waiting) > 2 * workers):
                ready, future = waiting.popleft()
                ids, text_bytes = future.result()
                yield ready, ids, text_bytes
                progress.update(text_bytes)


def _write_tokens(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    in_val: npt.NDArray[np.bool_] | None = None,
    split: str = "train",
) -> None:
    """Write `source` as the token file of `split`, or of both splits where `in_val` tells pieces apart."""
    names = [split, "val"] if in_val is not None else [split]
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    facts = [Counter(tokens=0, documents=0, text_bytes=0) for _ in names]
    pieces = _with_split(source, in_val)
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names]
        for which, ids, text_bytes in _encode_all(pieces, tokenizer, source.size_bytes, "tokenising"):
            files[which].write(ids.astype(kind).tobytes())
            facts[which]["tokens"] += len(ids)
            facts[which]["documents"] += int((ids == tokenizer.end_of_text).sum())
            facts[which]["text_bytes"] += text_bytes
    for name, fact in zip(names, facts, strict=True):
        (folder / f"{name}.json").write_text(json.dumps({**fact, "dtype": np.dtype(kind).name}))


def _with_split(source: Source, in_val: npt.NDArray[np.bool_] | None) -> Iterator[tuple[Piece, int]]:
    """The pieces of `source`, each with the number of its split. A document that goes on in the other split ends."""
    if in_val is None:
        yield from zip(source.pieces(), repeat(0))
        return
    number = 0
    for number, piece in enumerate(source.pieces(), 1):
        if number > len(in_val):
            break
        moves = number < len(in_val) and in_val[number] != in_val[number - 1]
        yield Piece(piece.text, piece.ends_document or bool(moves)), int(in_val[number - 1])
    if number != len(in_val):
        raise UserError(f"{source.description} changed while it was read: run again")


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Whatever is wrong with a token file, the mend is the same."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise UserError(f"the token files in {folder} are damaged: delete that folder ({error})") from error


def _read_tokens(folder: Path, split: str) -> Tokens:
    with _damage(folder):
        facts = json.loads((folder / f"{split}.json").read_text())
        kind = np.dtype(facts["dtype"])
        if facts["tokens"] * kind.itemsize != (folder / f"{split}.bin").stat().st_size:
            raise ValueError(f"{split}.bin has not the size it should have")
        ids = np.memmap(folder / f"{split}.bin", dtype=kind, mode="r") if facts["tokens"] else np.zeros(0, dtype=kind)
        return Tokens(ids, facts["documents"], facts["text_bytes"])


def _divide(tokens: Tokens, held_out: int, tokenizer: Tokenizer) -> tuple[Tokens, Tokens]:
    """`tokens` without the last `held_out`, and those."""
    parts = tokens.ids[:-held_out], tokens.ids[-held_out:]
    first, last = (Tokens(part, 1, int(tokenizer.byte_counts[part].sum())) for part in parts)
    return first, last


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    state = {key: value for key, value in tokenizer.to_state().items() if value is not None}
    np.savez(folder / "tokenizer.npz", **state)  # type: ignore[arg-type]


def _read_tokenizer(folder: Path) -> Tokenizer:
    with _damage(folder), np.load(folder / "tokenizer.npz", allow_pickle=False) as state:
        return Tokenizer.from_state({"gpt2_ids": None, **state})


def _cached(cache_dir: Path, facts: Mapping[str, object], make: Callable[[Path], None]) -> Path:
    """The cache's folder for `facts`, filled by `make` in a temporary folder and moved into place when whole."""
    key = hashlib.blake2b(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode(), digest_size=16).hexdigest()
    if (cache_dir / key).is_dir():
        return cache_dir / key
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{key}.", dir=cache_dir, ignore_cleanup_errors=True) as temporary:
            whole = Path(temporary) / "whole"
            whole.mkdir()
            make(whole)
            for file in whole.iterdir():
                sync(file)
            sync(whole)
            try:
                whole.rename(cache_dir / key)
            except OSError:
                if not (cache_dir / key).is_dir():  # another process was first
                    raise
            sync(cache_dir)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write token files in {cache_dir}: {reason}; choose another --cache_dir") from error
    return cache_dir / key
