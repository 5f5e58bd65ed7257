"""Logits -> the next token.

Legend: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
STRETCH = 256  # tokens side by side that are looked at together


@dataclass(frozen=True)
class Sampling:
    """How to choose. temperature 0: the likeliest; top_k 0, top_p 1, min_p 0 and repetition_penalty 1: no limit.

    logit_bias: what is added to the logits of some tokens, by id.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


def candidates(logits: Logits, how: Sampling) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The tokens to choose among, in the order of their ids, and their probabilities, (K,) each, K <= V; logits (V,).

    Temperature first, then the k likeliest (top-k, Fan et al., 2018), then of those the fewest that together reach
    probability p (nucleus sampling, Holtzman et al., 2020), then those at least min_p times as likely as the likeliest
    (min-p, Nguyen et al., 2024). Of equal logits the lower id is the likelier.
    """
    if how.temperature < 1e-6:  # so cold that only the likeliest is left
        return np.array([logits.argmax()]), np.ones(1)
    scaled = (logits - logits.max()) / np.float32(min(how.temperature, 1e30))
    if 0 < how.top_k < len(logits):
        chosen = likeliest(scaled, how.top_k)
        p = np.exp(scaled[chosen])
    else:
        chosen, p = np.arange(len(logits)), np.exp(scaled)
    if how.top_p < 1:
        nucleus = _nucleus(p, how.top_p)
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
    if k * STRETCH < len(logits):  # few: they are among those as high as the k-th peak of all stretches
        peaks = np.maximum.reduceat(logits, np.arange(0, len(logits), STRETCH))
        high = np.flatnonzero(logits >= np.partition(peaks, -k)[-k])
        if len(high) < len(logits):
            return high[likeliest(logits[high], k)]
    least = np.partition(logits, -k)[-k]  # what the k-th likeliest has
    above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
    return np.sort(np.concatenate([above, equal])[:k])


def _nucleus(p: npt.NDArray[np.float32], share: float) -> npt.NDArray[np.intp]:
    """The fewest of the probabilities p, (K,), that together have this share of their sum, as places in order.

    Without sorting all: they are counted by classes of nearly equal ones, and sorted is the class where it ends.
    """
    levels = np.minimum(-32 * np.log(np.maximum(p / p.max(), 1e-30)), 1e6).astype(np.int32)  # 0: the likeliest
    sums = np.cumsum(np.bincount(levels, weights=p))
    enough = share * sums[-1]
    last = min(int(np.searchsorted(sums, enough)), len(sums) - 1)
    ends = np.flatnonzero(levels == last)
    ends = ends[np.argsort(-p[ends], kind="stable")]
    before = sums[last - 1] if last else 0.0
    count = int(np.searchsorted(before + np.cumsum(p[ends], dtype=np.float64), enough)) + 1  # at least the first
    chosen = levels < last
    chosen[ends[:count]] = True
    return np.flatnonzero(chosen)


def penalise(logits: Logits, seen: npt.NDArray[np.bool_], penalty: float) -> Logits:
    """Logits (V,) with those of the tokens `seen`, (V,), made less likely.

    Divided by `penalty` where positive, multiplied where negative (CTRL, Keskar et al., 2019).
    """
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def biased(logits: Logits, written: npt.NDArray[np.int32], how: Sampling) -> Logits:
    """Logits (V,) less frequency_penalty for each time that a token was written, and presence_penalty if it ever was.

    written: how often each token was, (V,). Then logit_bias is added. All three are as in OpenAI's API.
    """
    less = how.frequency_penalty * written + how.presence_penalty * (written > 0)
    result = logits - less.astype(np.float32)
    result[list(how.logit_bias)] += np.array(list(how.logit_bias.values()), dtype=np.float32)
    return result


def choose(logits: Logits, how: Sampling, random: np.random.Generator) -> int:
    """One token for logits (V,), drawn by its probability."""
    chosen, p = candidates(logits, how)
    if len(p) == 1:
        return int(chosen[0])
    # First which stretch, then which of it: to add up all one by one takes longer than all else.
    starts = np.arange(0, len(p), STRETCH)
    sums = np.cumsum(np.add.reduceat(p, starts))
    draw = random.random() * sums[-1]
    stretch = min(int(np.searchsorted(sums, draw, side="right")), len(sums) - 1)
    within = np.cumsum(p[starts[stretch] :][:STRETCH])
    place = int(np.searchsorted(within, draw - (sums[stretch - 1] if stretch else 0.0), side="right"))
    return int(chosen[starts[stretch] + min(place, len(within) - 1)])


def log_probabilities(logits: Logits, ids: Sequence[int]) -> list[float]:
    """What the model believes of the tokens `ids`, whatever the sampling: their log-probabilities; logits (V,)."""
    top = logits.max()
    log_sum = float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    return [float(logits[id]) - float(top) - log_sum for id in ids]
