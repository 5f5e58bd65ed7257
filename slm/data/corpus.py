"""Documents -> token files on disk: made once by all cores, memory-mapped ever after.

A token file is the flat stream of a split's ids, each document closed by `<|endoftext|>`, as uint16 (uint32 for more
than 65,536 ids). It lies in a folder of the cache with a name made of everything it depends on, which is moved there
when whole. What lies there has checksums, and is made again where it is damaged.

The work on a large text is divided: what is found of each of its parts is a folder of the cache, too. So a run that was
killed goes on where it stopped, a text that grew is read where it is new, and processes, also on other machines, that
want the same text from the same cache share the work: each takes what no other is at, which a lock file says.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
import sys
import tempfile
import time
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, product, repeat
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from tqdm import tqdm

from slm.config.train import DataConfig
from slm.cores import usable_cores
from slm.data import tokenizer as tokenizers
from slm.data.sources import END_OF_TEXT, Piece, Source, open_source, validation_source
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.files import checksum, sync, user_path

BLOCK_CHARACTERS = 1 << 18  # text that one call of the tokenizer gets: long enough for threads not to wait on Python
PART_BYTES = 1 << 24  # of text that is worked on at a time, where there is more than that
FORMAT = 2  # raise it when the same text would give other files
CHECKSUMS = "checksums.json"

Choice = npt.NDArray[np.bool_]  # of each piece of a source: whether it is kept for validation


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

    cache = _open_cache(config.cache_dir)

    @functools.cache
    def plan() -> tuple[Choice | None, Tokenizer]:
        in_val = None if val_source else choose_validation(source, config.val_fraction, cache)
        return in_val, tokenizer or _make_tokenizer(config.tokenizer, vocab_size, source, in_val, cache)

    def share() -> None:
        if _parts(source) or (val_source and _parts(val_source)):
            in_val, made = plan()
            _tokens_of_parts(cache, source, made, in_val)
            if val_source:
                _tokens_of_parts(cache, val_source, made)

    def make(folder: Path) -> None:
        in_val, made = plan()
        _write_tokenizer(folder, made)
        _write_tokens(folder, source, made, in_val, cache=cache)
        if val_source:
            _write_tokens(folder, val_source, made, split="val", cache=cache)

    folder = _cached(cache, facts, make, share)
    tokenizer = _read_tokenizer(folder)
    train, val = _read_tokens(folder, "train"), _read_tokens(folder, "val")
    if not len(val):  # one short piece of text: its end is kept for validation
        held_out = max(2, math.ceil(config.val_fraction * len(train)))
        train, val = _divide(train, held_out, tokenizer)
    description = source.description + (f"; validation: {val_source.description}" if val_source else "")
    return Corpus(train, val, tokenizer, description, folder.name)


def encode(source: Source, tokenizer: Tokenizer, cache_dir: str) -> Tokens:
    """All tokens of `source`, from the cache where it has them."""
    cache, facts = _open_cache(cache_dir), {"source": source.fingerprint, "vocabulary": tokenizer.fingerprint}

    def make(folder: Path) -> None:
        _write_tokens(folder, source, tokenizer, cache=cache)

    return _read_tokens(_cached(cache, facts, make, lambda: _tokens_of_parts(cache, source, tokenizer)), "train")


def choose_validation(source: Source, fraction: float, cache: Path | None = None) -> Choice:
    """Which pieces of `source` are kept for validation, (pieces,): about `fraction` of its documents, at least one.

    A document is chosen by a hash of its text, so documents added later move no other (but for the one that is chosen
    where the hash alone would choose none). Where there are fewer than 1 / `fraction` documents, as in a text file
    without separators, each piece of some thousand characters is chosen by its own hash. A single piece is not chosen.
    """
    hashed = (cache and _hashes_of_parts(cache, source)) or [_hashes(source)]
    key, starts = (np.concatenate(arrays) for arrays in zip(*hashed, strict=True))
    documents = np.cumsum(starts, dtype=np.int64) - 1  # of each piece
    by_document = documents[-1] + 1 >= 1 / fraction
    if by_document:
        key = np.add.reduceat(key, np.flatnonzero(starts))  # wraps around
    chosen = key < np.uint64(fraction * 2.0**64)
    if len(key) > 1:
        chosen[key.argmin()], chosen[key.argmax()] = True, False
    return chosen[documents] if by_document else chosen


def _hashes(source: Source) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int8]]:
    """A hash of each piece's text, and 1 where it begins a document, else 0: (pieces,) both."""
    hashes, starts_document, starts = array("Q"), array("b"), True
    for piece in source.pieces():
        digest = hashlib.blake2b(piece.text.encode(errors="surrogatepass"), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little"))
        starts_document.append(starts)
        starts = piece.ends_document
    return np.frombuffer(hashes, dtype=np.uint64), np.frombuffer(starts_document, dtype=np.int8)


def _make_tokenizer(kind: str, vocab_size: int, source: Source, in_val: Choice | None, cache: Path) -> Tokenizer:
    """The tokenizer for the training part of `source`."""

    def train_bpe() -> Tokenizer:
        return tokenizers.train_bpe((piece.text for piece in _in_training(source, in_val)), vocab_size)

    if kind == "bpe":
        if not _parts(source):
            return train_bpe()
        facts = {"bpe": source.fingerprint, "validation": _digest(in_val), "vocab_size": vocab_size}
        return _read_tokenizer(_cached(cache, facts, lambda folder: _write_tokenizer(folder, train_bpe())))
    gpt2 = tokenizers.gpt2()
    if vocab_size == gpt2.vocab_size:
        return gpt2
    counts = np.zeros(gpt2.vocab_size, dtype=np.int64)
    for found in _counts_of_parts(cache, source, gpt2, in_val) if _parts(source) else [_counts(source, gpt2, in_val)]:
        counts += found
    return tokenizers.cut(counts, vocab_size)


def _in_training(source: Source, in_val: Choice | None) -> Iterator[Piece]:
    held_out = repeat(False) if in_val is None else in_val
    return (piece for piece, is_out in zip(source.pieces(), held_out, strict=False) if not is_out)


def _counts(source: Source, tokenizer: Tokenizer, in_val: Choice | None) -> npt.NDArray[np.int64]:
    """How often each token occurs in the training part of `source`, (vocab_size,)."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    pieces = zip(_in_training(source, in_val), repeat(0))
    for _, ids, _ in _encode_all(pieces, tokenizer, source.size_bytes, "counting tokens"):
        counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    return counts


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
    in_val: Choice | None = None,
    split: str = "train",
    cache: Path | None = None,
) -> None:
    """Write `source` as the token file of `split`, or of both splits where `in_val` tells pieces apart.

    cache: where the tokens of its parts are, which are made where they are missing; None: `source` is read at once.
    """
    names = [split, "val"] if in_val is not None else [split]
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    facts = [Counter(tokens=0, documents=0, text_bytes=0) for _ in names]
    parts = _tokens_of_parts(cache, source, tokenizer, in_val) if cache else []
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names]
        for part, (which, name) in product(parts, enumerate(("train", "val")[: len(names)])):
            with _damage(part), (part / f"{name}.bin").open("rb") as tokens:
                told = json.loads((part / f"{name}.json").read_text())
                facts[which].update({count: told[count] for count in facts[which]})  # adds
                shutil.copyfileobj(tokens, files[which], 1 << 24)
        pieces = () if parts else _with_split(source, in_val)
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


# --- The parts of a large text ---


@functools.lru_cache(maxsize=2)
def _parts(source: Source) -> list[Source]:
    """The parts that `source` is worked on in; none where it is small, or can only be read as a whole."""
    parts = source.parts(PART_BYTES) if source.parts else []
    if len(parts) < 2:
        return []
    next(source.pieces())  # raises UserError where there is no text in any of them
    return parts


def _hashes_of_parts(cache: Path, source: Source) -> list[Any]:
    """What `_hashes` finds in each part."""

    def write(part: Source, folder: Path) -> None:
        hashes, starts = _hashes(part)
        np.save(folder / "hashes.npy", hashes)
        np.save(folder / "starts.npy", starts)

    jobs = [({"hashes": part.fingerprint}, functools.partial(write, part)) for part in _parts(source)]
    return [(_read_array(folder, "hashes"), _read_array(folder, "starts")) for folder in _all_cached(cache, jobs)]


def _counts_of_parts(
    cache: Path, source: Source, tokenizer: Tokenizer, in_val: Choice | None
) -> Iterator[npt.NDArray[np.int64]]:
    """What `_counts` finds in each part."""

    def write(part: Source, choice: Choice | None, folder: Path) -> None:
        np.save(folder / "counts.npy", _counts(part, tokenizer, choice))

    jobs = [
        (
            {"counts": part.fingerprint, "vocabulary": tokenizer.fingerprint, "validation": _digest(choice)},
            functools.partial(write, part, choice),
        )
        for part, choice in _with_choice(cache, source, in_val)
    ]
    return (_read_array(folder, "counts") for folder in _all_cached(cache, jobs))


def _tokens_of_parts(cache: Path, source: Source, tokenizer: Tokenizer, in_val: Choice | None = None) -> list[Path]:
    """The folders of each part's tokens."""
    jobs = [
        (
            {"tokens": part.fingerprint, "vocabulary": tokenizer.fingerprint, "validation": _digest(choice)},
            functools.partial(_write_tokens, source=part, tokenizer=tokenizer, in_val=choice),
        )
        for part, choice in _with_choice(cache, source, in_val)
    ]
    return _all_cached(cache, jobs)


def _with_choice(cache: Path, source: Source, in_val: Choice | None) -> list[tuple[Source, Choice | None]]:
    """Each part with what `in_val` says of its pieces."""
    parts = _parts(source)
    if in_val is None or not parts:
        return [(part, None) for part in parts]
    lengths = [len(hashes) for hashes, _ in _hashes_of_parts(cache, source)]
    return list(zip(parts, np.split(in_val, np.cumsum(lengths)[:-1]), strict=True))


def _read_array(folder: Path, name: str) -> npt.NDArray[Any]:
    with _damage(folder):
        return np.load(folder / f"{name}.npy", allow_pickle=False)


def _digest(choice: Choice | None) -> str | None:
    return None if choice is None else hashlib.blake2b(choice.tobytes(), digest_size=16).hexdigest()


# --- The cache: folders that are there whole or not at all ---

Job = tuple[Mapping[str, object], Callable[[Path], None]]  # what a folder depends on, and what fills it


def _open_cache(cache_dir: str) -> Path:
    """The folder `cache_dir`, which is made where it is missing."""
    path = user_path(cache_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    return path


def _unwritable(cache_dir: Path, error: Exception) -> UserError:
    reason = (isinstance(error, OSError) and error.strerror) or error
    return UserError(f"cannot write token files in {cache_dir}: {reason}; choose another --cache_dir")


def _cached(
    cache_dir: Path,
    facts: Mapping[str, object],
    make: Callable[[Path], None],
    share: Callable[[], object] = lambda: None,
) -> Path:
    """The cache's folder for `facts`, filled by `make` where it is missing, after `share`.

    `make` is called by one process alone, and `share` by all that need the folder.
    """
    if not (cache_dir / _key(facts)).is_dir():
        share()
    (folder,) = _all_cached(cache_dir, [(facts, make)])
    return folder


def _all_cached(cache_dir: Path, jobs: Sequence[Job]) -> list[Path]:
    """The cache's folders for all jobs, each made by the process that comes to it first."""
    folders: dict[int, Path] = {}
    waits = 0
    try:
        while len(folders) < len(jobs):
            before = len(folders)
            for number, (facts, make) in enumerate(jobs):
                if number not in folders and (folder := _made(cache_dir / _key(facts), make)):
                    folders[number] = folder
            if len(folders) == before:  # others are at all that is left
                time.sleep(0.1)
                waits += 1
                if waits == 50:
                    print(f"waiting for another process, which makes token files in {cache_dir}", file=sys.stderr)
    except OSError as error:
        raise _unwritable(cache_dir, error) from error
    return [folders[number] for number in range(len(jobs))]


def _key(facts: Mapping[str, object]) -> str:
    return hashlib.blake2b(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode(), digest_size=16).hexdigest()


def _made(folder: Path, make: Callable[[Path], None]) -> Path | None:
    """`folder`, made where it is missing or damaged; None where another process is at it."""
    if folder.is_dir() and not _wrong(folder):
        return folder
    lock = FileLock(f"{folder}.lock")  # which the system takes from a process that dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    try:
        if folder.is_dir():
            if not (wrong := _wrong(folder)):  # another process was first
                return folder
            print(f"the token files in {folder} are damaged ({wrong}): making them again", file=sys.stderr)
        for stale in folder.parent.glob(f"{folder.name}.*.part"):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{folder.name}.", suffix=".part", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            whole = Path(temporary) / "whole"
            whole.mkdir()
            make(whole)
            found = _checksums(whole, sorted(file.name for file in whole.iterdir()))
            (whole / CHECKSUMS).write_text(json.dumps({"files": found, "checksum": _crc(found)}))
            for file in whole.iterdir():
                sync(file)
            sync(whole)
            if folder.exists():
                folder.rename(Path(temporary) / "damaged")
            whole.rename(folder)
            sync(folder.parent)
        return folder
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)  # before it is let go; who waits for it takes another
        lock.release()


def _wrong(folder: Path) -> str:
    """What is wrong with a folder's files; empty where they are as they were written."""
    try:
        told = json.loads((folder / CHECKSUMS).read_text())
        if told["checksum"] != _crc(told["files"]):
            return f"{CHECKSUMS} has changed"
        found = _checksums(folder, told["files"])
        return next((f"{name} has changed" for name, value in told["files"].items() if value != found[name]), "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"not readable, {type(error).__name__}"


def _checksums(folder: Path, names: Collection[str]) -> dict[str, str]:
    """The checksum of each of these files, by all cores."""
    progress = tqdm(
        total=sum((folder / name).stat().st_size for name in names), desc="checking token files",
        unit="B", unit_scale=True, unit_divisor=1000, leave=False, delay=2,
    )  # fmt: skip
    with progress:
        return {name: checksum(folder / name, done=progress.update) for name in names}


def _crc(checksums: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(checksums, sort_keys=True).encode()):08x}"
