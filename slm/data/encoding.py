"""Text -> tokens on all cores, written to token files, which are memory-mapped ever after.

A token file is the flat stream of a split's ids, each document closed by `<|endoftext|>`, as uint16 (uint32 for more
than 65,536 ids). A split is two files, NAME.bin with the ids and NAME.json with what there is to know of them.

A large text is worked on in parts, and what is found in each of them is a folder of the cache. So a run that was killed
continues where it stopped, a text that grew is read only where it is new, and processes share the work.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from slm.cores import usable_cores
from slm.data.cache import get_folder, get_folders, has_folder, open_cache, read_array, reporting_damage
from slm.data.source import END_OF_TEXT, Piece, Source
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError

BLOCK_CHARACTERS = 1 << 18  # text that one call of the tokenizer gets: long enough for threads not to wait on Python
PART_BYTES = 1 << 24  # of text that is worked on at a time, where there is more than that
TRAIN, VAL = 0, 1  # the number of a split
SPLITS = ("train", "val")

Choice = npt.NDArray[np.bool_]  # (pieces,): whether each piece of a source is kept for validation
Ids = npt.NDArray[np.uint32]


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


def encode(source: Source, tokenizer: Tokenizer, cache_dir: str) -> Tokens:
    """All tokens of `source`, from the cache where it has them. Raises UserError where the text cannot be read."""
    cache, facts = open_cache(cache_dir), {"source": source.fingerprint, "vocabulary": tokenizer.fingerprint}
    if not has_folder(cache, facts):
        encode_parts(cache, source, tokenizer)

    def make(folder: Path) -> None:
        write_tokens(folder, source, tokenizer, cache=cache)

    return read_tokens(get_folder(cache, facts, make), "train", tokenizer.vocab_size)


# --- On all cores ---


class Encoded(NamedTuple):
    """A block of text that was encoded."""

    split: int
    ids: Ids  # (n,)
    text_bytes: int


def encode_all(
    pieces: Iterable[tuple[Piece, int]], tokenizer: Tokenizer, size_bytes: int | None, doing: str
) -> Iterator[Encoded]:
    """Encode pieces, each given with the number of its split, on all cores; each split's blocks come in order.

    size_bytes, doing: the total and the name of the progress bar.
    """
    progress = tqdm(total=size_bytes, desc=doing, unit="B", unit_scale=True, unit_divisor=1000, leave=False, delay=0.5)
    workers = usable_cores()
    waiting: deque[Future[Encoded]] = deque()
    with progress, ThreadPoolExecutor(workers) as pool:
        for split, block in _blocks(pieces):
            waiting.append(pool.submit(_encode_block, split, block, tokenizer))
            if len(waiting) > 2 * workers:
                encoded = waiting.popleft().result()
                yield encoded
                progress.update(encoded.text_bytes)
        while waiting:
            encoded = waiting.popleft().result()
            yield encoded
            progress.update(encoded.text_bytes)


def _blocks(pieces: Iterable[tuple[Piece, int]]) -> Iterator[tuple[int, list[Piece]]]:
    """Pieces of one split in blocks of about BLOCK_CHARACTERS, each with the number of the split."""
    blocks: dict[int, list[Piece]] = {}  # of each split, not full yet
    lengths: dict[int, int] = {}
    for piece, split in pieces:
        blocks.setdefault(split, []).append(piece)
        lengths[split] = lengths.get(split, 0) + len(piece.text)
        if lengths[split] >= BLOCK_CHARACTERS:
            yield split, blocks.pop(split)
            lengths[split] = 0
    yield from blocks.items()


def _encode_block(split: int, block: list[Piece], tokenizer: Tokenizer) -> Encoded:
    # The pieces are joined by the end of text, which is taken out again where the document continues.
    ids = tokenizer.encode(END_OF_TEXT.join(piece.text for piece in block) + END_OF_TEXT)
    continues = [not piece.ends_document for piece in block]
    if any(continues):
        ids = np.delete(ids, np.flatnonzero(ids == tokenizer.end_of_text)[continues])
    return Encoded(split, ids, int(tokenizer.byte_counts[ids].sum()))


# --- Token files ---


@dataclass
class _Facts:
    """What the .json file says of a .bin file."""

    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    dtype: str = "uint16"


def write_tokens(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    in_val: Choice | None = None,
    *,
    split: str = "train",
    cache: Path,
) -> None:
    """Write the token files of `source` into `folder`, joined from those of its parts where it has any.

    in_val: the pieces that go to the files of "val"; None: all go to the files of `split`.
    """
    parts = encode_parts(cache, source, tokenizer, in_val)
    if parts:
        _join_parts(folder, parts, {"train": split} if in_val is None else {"train": "train", "val": "val"})
    else:
        _tokenise(folder, source, tokenizer, in_val, split)


def _tokenise(
    folder: Path, source: Source, tokenizer: Tokenizer, in_val: Choice | None = None, split: str = "train"
) -> None:
    """Write the token files of `source`, reading it from beginning to end."""
    names = [split] if in_val is None else SPLITS
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    facts = [_Facts(dtype=dtype.name) for _ in names]
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names]
        for encoded in encode_all(_with_split(source, in_val), tokenizer, source.size_bytes, "tokenising"):
            files[encoded.split].write(encoded.ids.astype(dtype).tobytes())
            fact = facts[encoded.split]
            fact.tokens += len(encoded.ids)
            fact.documents += int((encoded.ids == tokenizer.end_of_text).sum())
            fact.text_bytes += encoded.text_bytes
    for name, fact in zip(names, facts, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(asdict(fact)))


def _join_parts(folder: Path, parts: list[Path], names: dict[str, str]) -> None:
    """Write the token files of a text whose parts' token files are in `parts`. names: theirs -> ours."""
    for theirs, ours in names.items():
        whole = _Facts()
        with (folder / f"{ours}.bin").open("wb") as file:
            for part in parts:
                with reporting_damage(part), (part / f"{theirs}.bin").open("rb") as tokens:
                    fact = _Facts(**json.loads((part / f"{theirs}.json").read_text()))
                    whole.tokens += fact.tokens
                    whole.documents += fact.documents
                    whole.text_bytes += fact.text_bytes
                    whole.dtype = fact.dtype
                    shutil.copyfileobj(tokens, file, 1 << 24)
        (folder / f"{ours}.json").write_text(json.dumps(asdict(whole)))


def read_tokens(folder: Path, split: str, vocab_size: int) -> Tokens:
    """The token files of `split`, memory-mapped. Raises UserError where they are damaged, or not of this vocabulary."""
    with reporting_damage(folder):
        facts = _Facts(**json.loads((folder / f"{split}.json").read_text()))
        dtype = np.dtype(facts.dtype)
        if facts.tokens * dtype.itemsize != (folder / f"{split}.bin").stat().st_size:
            raise ValueError(f"{split}.bin does not have the size that {split}.json gives")
        largest = _largest_id(folder / f"{split}.bin", dtype)
        if largest >= vocab_size:  # whoever can write to the cache can write checksums, too
            raise ValueError(f"{split}.bin has the token {largest}, and the vocabulary {vocab_size}")
        ids = np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r") if facts.tokens else np.zeros(0, dtype=dtype)
        return Tokens(ids, facts.documents, facts.text_bytes)


def _largest_id(path: Path, dtype: np.dtype[Any]) -> int:
    """The largest id in a .bin file, 0 where it is empty. It is read: all of a map would count as memory in use."""
    largest = 0
    with path.open("rb") as file:
        while len(block := np.fromfile(file, dtype=dtype, count=1 << 20)):
            largest = max(largest, int(block.max()))
    return largest


def _with_split(source: Source, in_val: Choice | None) -> Iterator[tuple[Piece, int]]:
    """The pieces of `source`, each with the number of its split. A document that continues in the other split ends."""
    if in_val is None:
        yield from zip(source.pieces(), repeat(TRAIN))
        return
    number = 0
    for number, piece in enumerate(source.pieces(), 1):
        if number > len(in_val):
            break
        moves = number < len(in_val) and in_val[number] != in_val[number - 1]
        yield Piece(piece.text, piece.ends_document or bool(moves)), VAL if in_val[number - 1] else TRAIN
    if number != len(in_val):
        raise UserError(f"{source.description} changed while it was read: run again")


# --- What is found in a text, and in the parts of a large one ---


@functools.lru_cache(maxsize=2)
def parts_of(source: Source) -> list[Source]:
    """The parts that `source` is worked on in; none where it is small, or can only be read as a whole."""
    parts = source.parts(PART_BYTES) if source.parts else []
    if len(parts) < 2:
        return []
    next(source.pieces())  # raises UserError where there is no text in any of them
    return parts


def encode_parts(cache: Path, source: Source, tokenizer: Tokenizer, in_val: Choice | None = None) -> list[Path]:
    """The folders with the token files of each part of `source`, made where they are missing; none without parts."""
    jobs = [
        (
            {"tokens": part.fingerprint, "vocabulary": tokenizer.fingerprint, "validation": digest_of(choice)},
            functools.partial(_tokenise, source=part, tokenizer=tokenizer, in_val=choice),
        )
        for part, choice in _parts_with_choice(cache, source, in_val)
    ]
    return get_folders(cache, jobs)


class Hashes(NamedTuple):
    """What the choice of validation needs to know of each piece: (pieces,) each."""

    hashes: npt.NDArray[np.uint64]  # of the piece's text
    sizes: npt.NDArray[np.int64]  # bytes of it in UTF-8
    starts: npt.NDArray[np.int8]  # 1 where the piece begins a document, else 0


def hash_pieces(source: Source, cache: Path | None = None) -> Hashes:
    """The hash and the size of each piece of `source`. cache: what is found in the parts of a large text is kept."""
    found = _hashes_of_parts(cache, source) if cache else []
    return Hashes(*(np.concatenate(arrays) for arrays in zip(*found, strict=True))) if found else _hashes(source)


def count_tokens(source: Source, tokenizer: Tokenizer, in_val: Choice | None, cache: Path) -> npt.NDArray[np.int64]:
    """How often each token occurs in the training part of `source`, (vocab_size,)."""
    if not parts_of(source):
        return _counts(source, tokenizer, in_val)

    def write(part: Source, choice: Choice | None, folder: Path) -> None:
        np.save(folder / "counts.npy", _counts(part, tokenizer, choice))

    jobs = [
        (
            {"counts": part.fingerprint, "vocabulary": tokenizer.fingerprint, "validation": digest_of(choice)},
            functools.partial(write, part, choice),
        )
        for part, choice in _parts_with_choice(cache, source, in_val)
    ]
    total = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for folder in get_folders(cache, jobs):
        total += read_array(folder, "counts")
    return total


def in_training(source: Source, in_val: Choice | None) -> Iterator[Piece]:
    """The pieces of `source` that are not kept for validation."""
    if in_val is None:
        return source.pieces()
    return (piece for piece, is_out in zip(source.pieces(), in_val, strict=False) if not is_out)


def digest_of(choice: Choice | None) -> str | None:
    """A hash of a choice, as a fact for the cache."""
    return None if choice is None else hashlib.blake2b(choice.tobytes(), digest_size=16).hexdigest()


def _counts(source: Source, tokenizer: Tokenizer, in_val: Choice | None) -> npt.NDArray[np.int64]:
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    pieces = zip(in_training(source, in_val), repeat(TRAIN))
    for encoded in encode_all(pieces, tokenizer, source.size_bytes, "counting tokens"):
        counts += np.bincount(encoded.ids, minlength=tokenizer.vocab_size)
    return counts


def _hashes(source: Source) -> Hashes:
    hashes, sizes, starts, starts_document = array("Q"), array("q"), array("b"), True
    for piece in source.pieces():
        text = piece.text.encode(errors="surrogatepass")
        hashes.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
        sizes.append(len(text))
        starts.append(starts_document)
        starts_document = piece.ends_document
    return Hashes(np.frombuffer(hashes, np.uint64), np.frombuffer(sizes, np.int64), np.frombuffer(starts, np.int8))


def _hashes_of_parts(cache: Path, source: Source) -> list[Hashes]:
    def write(part: Source, folder: Path) -> None:
        for name, values in _hashes(part)._asdict().items():
            np.save(folder / f"{name}.npy", values)

    jobs = [({"pieces": part.fingerprint}, functools.partial(write, part)) for part in parts_of(source)]
    return [Hashes(*(read_array(folder, name) for name in Hashes._fields)) for folder in get_folders(cache, jobs)]


def _parts_with_choice(cache: Path, source: Source, in_val: Choice | None) -> list[tuple[Source, Choice | None]]:
    """Each part with what `in_val` says of its pieces."""
    parts = parts_of(source)
    if in_val is None or not parts:
        return [(part, None) for part in parts]
    lengths = [len(found.hashes) for found in _hashes_of_parts(cache, source)]
    return list(zip(parts, np.split(in_val, np.cumsum(lengths)[:-1]), strict=True))
