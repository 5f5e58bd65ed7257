"""Where a run is, and what is measured on its way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from slm.evaluation.measure import Measures


@dataclass
class State:
    """With the weights and the optimizers' averages, all that a resumed run needs; saved as it is.

    One object lives as long as its run: `become` changes it in place.
    """

    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # spent in the loop
    rate: float = 0.0  # learning rate of the last step
    gradient_norm: float = 0.0  # of the last step, before clipping; up to date when saved
    best_loss: float = math.inf  # validation loss of the model in best_model.pt, nats per token
    best_step: int = 0
    evaluations_since_best: int = 0
    skipped: int = 0  # steps that changed nothing, as their gradient was NaN or infinite
    skipped_in_a_row: int = 0
    checked_step: int = 0  # the step of the last check of the loss
    checked_skipped: int = 0  # steps skipped until then
    checked_loss: float = 0.0  # sum of the losses of the steps since then that were not skipped; up to date when saved
    lowest_loss: float = math.inf  # lowest mean loss between two checks
    rollbacks: int = 0  # returns to an earlier state, each of which halves the rate
    pieces: int = 1  # that a micro-batch is computed in, where the memory is too small for a whole one
    rows: list[dict[str, float]] = field(default_factory=list)  # of metrics.csv
    samples: list[dict[str, Any]] = field(default_factory=list)  # of samples.jsonl

    def become(self, other: State) -> None:
        """Take over every value of `other`."""
        vars(self).update(vars(other))


@dataclass
class Pace:
    """How fast steps have been since the last evaluation, not counting evaluations and saves."""

    seconds: float = 0.0
    steps: int = 0

    def took(self, seconds: float) -> None:
        """Count one more step."""
        self.seconds += seconds
        self.steps += 1

    def restart(self) -> None:
        """Count from here on."""
        self.seconds, self.steps = 0.0, 0

    @property
    def steps_per_second(self) -> float:
        """0 before the first step."""
        return self.steps / max(self.seconds, 1e-9)


class Evaluation(NamedTuple):
    """The model at one moment of its training."""

    train: Measures
    val: Measures
    weights: Mapping[str, Tensor]  # whole, with a row for each token; in the first process alone
    sample: Mapping[str, Any]  # a line of samples.jsonl; in the first process alone
