"""Logits -> the next token.

Legend: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How to choose. temperature 0: the likeliest; top_k 0, top_p 1, min_p 0 and repetition_penalty 1: no limit."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def candidates(logits: Logits, how: Sampling) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The tokens to choose among, in the order of their ids, and their probabilities, (K,) each, K <= V; logits (V,).

    Temperature first, then the k likeliest (top-k, Fan et al., 2018), then of those the fewest that together reach
    probability p (nucleus sampling, Holtzman et al., 2020), then those at least min_p times as likely as the likeliest
    (min-p, Nguyen et al., 2024). Of equal logits the lower id is the likelier.
    """
    if how.temperature < 1e-6:  # so cold that only the likeliest is left
        return np.array([logits.argmax()]), np.ones(1)
    scaled = (logits - logits.max()) / np.float32(how.temperature)
    chosen = np.arange(len(logits))
    if 0 < how.top_k < len(logits):
        chosen = likeliest(scaled, how.top_k)
    p = np.exp(scaled[chosen])
    if how.top_p < 1:
        p /= p.sum(dtype=np.float64)
        # Tokens this unlikely add up to at most 1 - top_p, so the nucleus needs none of them: less to sort.
        likely = np.flatnonzero(p >= (1 - how.top_p) / len(p))
        likely = likely[np.argsort(-p[likely], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(p[likely], dtype=np.float64), how.top_p)) + 1  # at least the first
        nucleus = np.sort(likely[:enough])
        chosen, p = chosen[nucleus], p[nucleus]
    if how.min_p > 0:
        likely = np.flatnonzero(p >= how.min_p * p.max())
        chosen, p = chosen[likely], p[likely]
    return chosen, p / p.sum(dtype=np.float64)


def likeliest(logits: Logits, k: int) -> npt.NDArray[np.intp]:
    """The k likeliest tokens, of equal ones those with lower ids, in the order of their ids; logits (V,)."""
    if k >= len(logits):
        return np.arange(len(logits))
    if not k:
        return np.arange(0)
    least = np.partition(logits, -k)[-k]  # what the k-th likeliest has
    above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
    return np.sort(np.concatenate([above, equal])[:k])


def penalise(logits: Logits, seen: npt.NDArray[np.bool_], penalty: float) -> Logits:
    """Logits (V,) with those of the tokens `seen`, (V,), made less likely.

    Divided by `penalty` where positive, multiplied where negative (CTRL, Keskar et al., 2019).
    """
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(logits: Logits, how: Sampling, random: np.random.Generator) -> int:
    """One token for logits (V,), drawn by its probability."""
    chosen, p = candidates(logits, how)
    return int(chosen[min(int(np.searchsorted(np.cumsum(p), random.random(), side="right")), len(p) - 1)])


def log_probabilities(logits: Logits) -> npt.NDArray[np.float64]:
    """What the model believes, whatever the sampling: logits (V,) -> logarithms of probabilities (V,)."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
