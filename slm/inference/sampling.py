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
    """The tokens to choose among, likeliest first, and their probabilities, (K,) each, K <= V; logits (V,).

    Temperature first, then the k likeliest (top-k, Fan et al., 2018), then of those the fewest that together reach
    probability p (nucleus sampling, Holtzman et al., 2020), then those at least min_p times as likely as the likeliest
    (min-p, Nguyen et al., 2024). Of equal logits the lower id comes first.
    """
    if how.temperature == 0:
        return np.array([logits.argmax()]), np.ones(1)
    scaled = (logits.astype(np.float64) - logits.max()) / how.temperature
    chosen = np.arange(len(logits))
    if 0 < how.top_k < len(logits):
        least = np.partition(scaled, -how.top_k)[-how.top_k]  # what the k-th likeliest has
        chosen = np.concatenate([np.flatnonzero(scaled > least), np.flatnonzero(scaled == least)])[: how.top_k]
    p = np.exp(scaled[chosen])
    p /= p.sum()
    if how.top_p < 1:  # tokens this unlikely add up to at most 1 - top_p, so the nucleus needs none: less to sort
        likely = p >= (1 - how.top_p) / len(p)
        chosen, p = chosen[likely], p[likely]
    order = np.lexsort((chosen, -p))
    chosen, p = chosen[order], p[order]
    if how.top_p < 1:
        enough = int(np.searchsorted(np.cumsum(p), how.top_p)) + 1  # the first token is always among them
        chosen, p = chosen[:enough], p[:enough]
    if how.min_p > 0:
        enough = int(np.searchsorted(-p, -how.min_p * p[0], side="right"))
        chosen, p = chosen[:enough], p[:enough]
    return chosen, p / p.sum()


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
