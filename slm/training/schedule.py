"""The learning rate as a function of the step: linear warm-up, then decay."""

from __future__ import annotations

import math


def learning_rate(
    step: int, total_steps: float, *, kind: str, peak: float, minimum: float, warmup_steps: float
) -> float:
    """The rate of optimizer step `step` (from 0) in a run of `total_steps`; neither need be whole.

    kind: `cosine` (Loshchilov and Hutter, 2017), `linear`, or `wsd`: warm-up, stable, and a linear decay over the last
    fifth (Hu et al., 2024). The first step has peak / warmup_steps, the last one is a step short of `minimum`.
    """
    if step < warmup_steps:
        return peak * min(1.0, (step + 1) / warmup_steps)
    done = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))  # 0 at the peak, 1 at the end
    if kind == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * done))
    elif kind == "linear":
        share = 1 - done
    else:
        share = min(1.0, (1 - done) / 0.2)
    return minimum + (peak - minimum) * share
