"""Prompts in, tokens out, one at a time, at any length. Works on ids and an engine, and knows no framework.

Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slm.inference.sampling import Sampling, choose

Ids = npt.NDArray[np.integer[Any]]
Logits = npt.NDArray[np.float32]


class Engine(Protocol):
    """A model that reads tokens and says what may come next."""

    context_length: int

    def prefill(self, ids: Ids) -> Logits:
        """Forget what was, read ids (B, T) with 1 <= T <= context_length: the logits of the next token, (B, V)."""

    def decode(self, ids: Ids) -> Logits:
        """Read one more token of each sequence, ids (B,): the logits of the next one, (B, V)."""


def generate(
    engine: Engine,
    prompt: Sequence[int],
    *,
    max_length: int,
    stop_token: int,
    sampling: Sampling,
    num_samples: int = 1,
    seed: int | None = None,
) -> Iterator[list[int | None]]:
    """Continue `prompt`, at least one token, `num_samples` times; yields each new token of all samples together.

    A sample ends before `stop_token`, from where on its place holds None, or after `max_length` tokens. Sample n of a
    seed is the same whatever `num_samples` is. A model sees context_length tokens: of a longer prompt it reads the last
    ones, and once its window is full it goes on from the window's second half.
    """
    half = max(1, engine.context_length // 2)
    random = [np.random.default_rng(None if seed is None else (seed, sample)) for sample in range(num_samples)]
    window = np.tile(np.asarray(prompt[-engine.context_length :], dtype=np.int64), (num_samples, 1))  # (B, T)
    ended = [False] * num_samples
    logits = engine.prefill(window)
    for position in range(max_length):
        tokens = [choose(row, sampling, rng) for row, rng in zip(logits, random, strict=True)]
        ended = [was or token == stop_token for was, token in zip(ended, tokens, strict=True)]
        if all(ended):
            return
        yield [None if over else token for over, token in zip(ended, tokens, strict=True)]
        if position + 1 == max_length:
            return
        new = np.array(tokens, dtype=np.int64)
        if window.shape[1] < engine.context_length:
            window = np.column_stack([window, new])
            logits = engine.decode(new)
        else:
            window = np.column_stack([window[:, window.shape[1] - half + 1 :], new])
            logits = engine.prefill(window)
