"""How far a run has come (step, seconds, best loss ...) and the measurements of a row of metrics.csv."""

from __future__ import annotations

import math
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from slm.config.fields import fits
from slm.evaluation.measure import Measures

# of metrics.csv
COLUMNS = (
    "step", "epoch", "seconds", "learning_rate", "gradient_norm", "tokens_per_second", "skipped_steps", "rollbacks",
    *(f"{split}_{name}" for split in ("train", "val") for name in ("loss", "perplexity", "accuracy", "bits_per_byte")),
)  # fmt: skip


def brief(value: object) -> str:
    """`value` as a part of a line."""
    return " ".join(repr(value).split())[:60]


def check_keys(what: str, found: object, known: Collection[str]) -> None:
    """Raises ValueError where `found` is not a dict with these keys and no others."""
    if not isinstance(found, dict):
        raise ValueError(f"{what} is {brief(found)}")
    unknown, missing = [key for key in found if key not in known], [key for key in known if key not in found]
    if unknown:
        raise ValueError(
            f"{what} has {unknown[0]!r}, which this program does not know: it may be of a newer version"[:160]
        )
    if missing:
        raise ValueError(f"{what} lacks {missing[0]!r}")


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
    trained_steps: int = 0  # since the last evaluation, without those skipped
    trained_loss: float = 0.0  # sum of their losses; up to date when saved, and when the model is evaluated
    trained_accuracy: float = 0.0  # sum of their accuracies; likewise
    rollbacks: int = 0  # returns to an earlier state, each of which halves the rate
    pieces: int = 1  # that a micro-batch is computed in, where the memory is too small for a whole one
    rows: list[dict[str, float]] = field(default_factory=list)  # of metrics.csv
    samples: list[dict[str, Any]] = field(default_factory=list)  # of samples.jsonl

    @classmethod
    def of(cls, kept: object) -> State:
        """The state whose fields `kept` has. Raises ValueError for what no run can have saved."""
        if isinstance(kept, dict):  # an older version had no sums since the last evaluation
            kept = {"trained_steps": 0, "trained_loss": 0.0, "trained_accuracy": 0.0, **kept}
        fields = {name: typing.get_origin(kind) or kind for name, kind in typing.get_type_hints(cls).items()}
        check_keys("state", kept, fields)
        assert isinstance(kept, dict)
        for name, kind in fields.items():
            value = kept[name]
            if not fits(kind, value) or (type(value) is int and not 0 <= value < 2**48):
                raise ValueError(f"{name} is {brief(value)}")
        if not (0 <= kept["seconds"] < math.inf and 0 <= kept["rate"] < math.inf and kept["pieces"] > 0):
            raise ValueError("seconds, rate or pieces are out of range")
        for row in kept["rows"]:
            check_keys("a row of metrics", row, COLUMNS)
            if not all(fits(float, value) for value in row.values()) or not all(
                0 <= row[name] < 2**48 for name in ("step", "seconds", "tokens_per_second")
            ):
                raise ValueError("a row of metrics has something else than numbers")
        for sample in kept["samples"]:
            if not isinstance(sample, dict) or not all(isinstance(each, str | int | float) for each in sample.values()):
                raise ValueError("a sample is no sample")
        return cls(**kept)

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

    train: Measures  # of the steps since the last evaluation; of the model as it is where there are none
    val: Measures
    weights: Mapping[str, Tensor]  # whole, with a row for each token; in the first process alone
    sample: Mapping[str, Any]  # a line of samples.jsonl; in the first process alone
    warning: str = ""  # where there is no sample
