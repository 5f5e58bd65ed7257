"""Prompts in, tokens out, one of each at a time, at any length. Works on ids and an engine, and knows no framework.

Legend: B sequences in the engine's batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from slm.errors import UserError
from slm.inference.sampling import Logits, Sampling, choose, log_probabilities, penalise

Ids = npt.NDArray[np.integer[Any]]


class Engine(Protocol):
    """A model that reads a batch of sequences, each of a length of its own, and says what may come next.

    A sequence holds at most context_length tokens.
    """

    context_length: int

    def prefill(self, prompts: Sequence[Ids]) -> Logits:
        """Read new sequences of at least one token and add them to the batch's end: their next logits, (new, V)."""

    def decode(self, ids: Ids) -> Logits:
        """Read one more token of each sequence, ids (B,): the next logits, (B, V)."""

    def keep(self, rows: Sequence[int]) -> None:
        """Make the batch of the sequences in these places, in this order; one may be taken several times, or none."""


class Token(NamedTuple):
    """What was chosen. Where asked for: its log-probability, in nats, and the likeliest tokens with theirs."""

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


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

        A model sees context_length tokens: of a longer prompt it reads the last ones, and once its window is full it
        goes on from the window's second half. Raises UserError where the model's logits are no numbers,
        and where it is asked for more after another call.
        """
        engine, context = self.engine, self.engine.context_length
        this = self._latest = object()
        windows = [list(prompt[-context:]) for prompt in prompts]
        engine.keep([])
        distinct = list(dict.fromkeys(map(tuple, windows)))  # samples of one prompt read it once
        logits = engine.prefill([np.array(window) for window in distinct])
        if len(distinct) < len(windows):
            places = [distinct.index(tuple(window)) for window in windows]
            engine.keep(places)
            logits = logits[places]
        seen = np.zeros((len(prompts), logits.shape[1]), dtype=bool) if sampling.repetition_penalty != 1 else None
        if seen is not None:
            for row, prompt in zip(seen, prompts, strict=True):
                row[list(prompt)] = True
            seen[:, self.stop_token] = False  # an end is no repetition

        numbers = list(range(len(prompts)))  # of the prompts that the batch's sequences continue
        for position in range(max_length):
            if not np.isfinite(logits.max(axis=1)).all():
                raise UserError("the model computes what is no number: its file is damaged, or its training failed")
            step: list[Token | None] = [None] * len(prompts)
            going: list[int] = []  # places in the batch
            for place, number in enumerate(numbers):
                row = logits[place]
                how = row if seen is None else penalise(row, seen[number], sampling.repetition_penalty)
                token = choose(how, sampling, random[number])
                if token == self.stop_token:
                    continue
                step[number] = Token(token) if alternatives is None else _explained(token, row, alternatives)
                windows[number].append(token)
                if seen is not None:
                    seen[number, token] = True
                if not ends(number, token):
                    going.append(place)
            if any(step):
                yield step
            if not going or position + 1 == max_length:
                return
            if self._latest is not this:
                raise UserError("another text was begun with this model: finish one first, or load the model twice")

            full = [place for place in going if len(windows[numbers[place]]) > context]
            others = [place for place in going if len(windows[numbers[place]]) <= context]
            if len(others) < len(numbers):
                engine.keep(others)
            read = []
            if others:
                read.append(engine.decode(np.array([windows[numbers[place]][-1] for place in others])))
            if full:
                for place in full:
                    windows[numbers[place]] = windows[numbers[place]][-max(1, context // 2) :]
                read.append(engine.prefill([np.array(windows[numbers[place]]) for place in full]))
            logits = read[0] if len(read) == 1 else np.concatenate(read)
            numbers = [numbers[place] for place in others + full]


def _explained(token: int, logits: Logits, alternatives: int) -> Token:
    """`token` with its probability among logits (V,), and the likeliest tokens with theirs."""
    logprobs = log_probabilities(logits)
    best = np.lexsort((np.arange(len(logprobs)), -logprobs))[:alternatives]
    return Token(token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))
