"""Prompts in, tokens out, one of each at a time, at any length. Works on ids and an engine, and knows no framework.

`Batch` is one step of generation for sequences that come and go; `Generator` runs it for prompts that start together.

Legend: B sequences in the engine's batch, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from slm.errors import UserError
from slm.inference.sampling import Logits, Sampling, choose, likeliest, log_probabilities, penalise

Ids = npt.NDArray[np.integer[Any]]


class Engine(Protocol):
    """A model that reads a batch of sequences, each of a length of its own, and says what may come next.

    A sequence holds at most context_length tokens; parameters: numbers that the model has learned.
    """

    context_length: int
    parameters: int

    def prefill(self, prompts: Sequence[Ids]) -> Logits:
        """Read new sequences of at least one token and add them to the batch's end: their next logits, (new, V)."""

    def decode(self, ids: Ids) -> list[Logits]:
        """Read one more token of each sequence, ids (B,): the next logits of each, (V,)."""

    def keep(self, rows: Sequence[int]) -> None:
        """Make the batch of the sequences in these places, in this order; one may be taken several times, or none."""

    def all_logits(self, ids: Ids) -> Logits:
        """The logits of each next token of whole sequences: ids (B, T) -> (B, T, V). The batch stays as it is."""


class Token(NamedTuple):
    """What was chosen. Where asked for: its log-probability, in nats, and the likeliest tokens with theirs."""

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Continuation:
    """A prompt of at least one token that is being continued, and how.

    It ends before the batch's stop token, after a token for which `ends` is true, and after `max_length` tokens; from
    outside, by setting `ended`. alternatives: how many likely tokens to tell with each chosen one, besides its
    probability; None: neither is computed.
    """

    ids: list[int]  # the prompt and what was added
    max_length: int  # tokens still to add
    sampling: Sampling
    random: np.random.Generator
    ends: Callable[[int], bool] = lambda token: False
    alternatives: int | None = None
    ended: bool = False
    begin: int = 0  # the model's window is ids[begin:]
    seen: npt.NDArray[np.bool_] | None = field(default=None, repr=False)  # (V,), for the repetition penalty

    def choose(self, logits: Logits, stop_token: int) -> Token | None:
        """The next token by its logits (V,), added to `ids`; None where the text ended before it."""
        how = logits
        if self.sampling.repetition_penalty != 1:
            if self.seen is None:
                self.seen = np.zeros(len(logits), dtype=bool)
                self.seen[self.ids] = True
                self.seen[stop_token] = False  # an end is no repetition
            how = penalise(logits, self.seen, self.sampling.repetition_penalty)
        token = choose(how, self.sampling, self.random)
        if token == stop_token:
            self.ended = True
            return None
        self.ids.append(token)
        self.max_length -= 1
        if self.seen is not None:
            self.seen[token] = True
        if self.ends(token) or not self.max_length:
            self.ended = True
        return Token(token) if self.alternatives is None else explained(token, logits, self.alternatives)


class Batch:
    """Sequences continued together. Any may join or leave between two steps, and what the others say stays the same.

    A model sees context_length tokens: of a longer prompt it reads the last ones, and once its window is full it goes
    on from the window's second half.
    """

    def __init__(self, engine: Engine, stop_token: int):
        self.engine, self.stop_token = engine, stop_token
        self._read: list[Continuation] = []  # in the order of the engine's batch
        self._new: list[Continuation] = []
        engine.keep([])

    def __len__(self) -> int:
        return sum(not each.ended for each in (*self._read, *self._new))

    def add(self, new: Iterable[Continuation]) -> None:
        """Let these join at the next step."""
        for each in new:
            each.begin = max(0, len(each.ids) - self.engine.context_length)
            self._new.append(each)

    def step(self) -> list[tuple[Continuation, Token | None]]:
        """The next token of each sequence that has not ended, None where it ended before that.

        Raises UserError where the model's logits are no numbers.
        """
        logits = self._advance()
        chosen = []
        for each, row in zip(self._read, logits, strict=True):
            if not np.isfinite(row.max()):
                raise UserError("the model computes what is no number: its file is damaged, or its training failed")
            chosen.append((each, each.choose(row, self.stop_token)))
        return chosen

    def _advance(self) -> list[Logits]:
        """Read each sequence's last token, or its whole window where it is new or the window is full.

        Returns the logits of all, (V,) each, in the order of `_read`.
        """
        engine, context = self.engine, self.engine.context_length
        going = [(place, each) for place, each in enumerate(self._read) if not each.ended]
        kept = [place for place, each in going if len(each.ids) - each.begin <= context]
        full = [each for _, each in going if len(each.ids) - each.begin > context]
        if len(kept) < len(self._read):
            engine.keep(kept)
        self._read = [self._read[place] for place in kept]
        logits = engine.decode(np.array([each.ids[-1] for each in self._read])) if kept else []
        for each in full:
            each.begin = len(each.ids) - max(1, context // 2)
        if new := full + [each for each in self._new if not each.ended]:
            windows = [tuple(each.ids[each.begin :]) for each in new]
            distinct = list(dict.fromkeys(windows))  # samples of one prompt read it once
            read = engine.prefill([np.array(window) for window in distinct])
            if len(distinct) < len(windows):
                places = [distinct.index(window) for window in windows]
                engine.keep([*range(len(kept)), *(len(kept) + place for place in places)])
                read = read[places]
            self._read += new
            logits = [*logits, *read]
        self._new = []
        return logits


class Generator:
    """Continues sequences with an engine, one call at a time. A sequence ends before its `stop_token`."""

    def __init__(self, engine: Engine, stop_token: int):
        self.engine, self.stop_token = engine, stop_token
        self._latest: object = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_length: int,
        sampling: Sampling,
        random: Sequence[np.random.Generator],
        ends: Callable[[int, int], bool] = lambda number, token: False,
        alternatives: int | None = None,
    ) -> Iterator[list[Token | None]]:
        """Continue each of `prompts`, of at least one token; yields the next token of all, None for those that ended.

        A sequence ends before the stop token, after a token for which `ends(number of the prompt, token)` is true, and
        after `max_length` tokens. What one yields does not depend on the others; `random` draws for each.
        `alternatives`: how many to tell with each token, besides its probability; None: neither is computed.

        Raises UserError where the model's logits are no numbers, and where it is asked for more after another call.
        """
        batch = self._latest = Batch(self.engine, self.stop_token)
        all_of_them = [
            Continuation(list(prompt), max_length, sampling, draws, functools.partial(ends, number), alternatives)
            for number, (prompt, draws) in enumerate(zip(prompts, random, strict=True))
        ]
        batch.add(all_of_them)
        while len(batch):
            if self._latest is not batch:
                raise UserError("another text was begun with this model: finish one first, or load the model twice")
            chosen = dict(batch.step())
            step = [chosen.get(each) for each in all_of_them]
            if any(step):
                yield step


def explained(token: int, logits: Logits, alternatives: int) -> Token:
    """`token` with its probability among logits (V,), and the likeliest tokens with theirs."""
    best = likeliest(logits, alternatives)
    best = best[np.argsort(-logits[best], kind="stable")]
    logprob, *others = log_probabilities(logits, [token, *best.tolist()])
    return Token(token, logprob, tuple(zip(best.tolist(), others, strict=True)))
