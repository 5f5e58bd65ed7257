"""What is decided before a run begins: numbers alone; no model, no disk, no clock.

Legend: B sequences in a micro-batch, T context length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from slm.config.train import TrainConfig
from slm.errors import UserError
from slm.training.schedule import learning_rate
from slm.training.state import State

PEAK_RATES = {"adamw": 1e-3, "muon": 4e-3}  # at width 384; docs/experiments.md
EVALUATIONS = 20  # in a run, unless they would take more than EVALUATION_SHARE of it
EVALUATION_BATCHES = 2  # in each, at least
GROUPS = 8  # of sequences in an evaluation, at least: how they differ gives the error of a part of a text
EVALUATION_SHARE = 0.03  # of the run's time; the validation at the end comes on top


@dataclass(frozen=True)
class Plan:
    """How long a run is, how a step is divided, which rate a step has and when the model is evaluated."""

    sequences: int  # of an optimizer step, over all processes
    batch_size: int  # sequences in a micro-batch of one process
    grad_accum: int  # micro-batches of an optimizer step in one process
    tokens_per_step: int
    steps_per_epoch: float
    steps: int  # length of a run that has no time limit
    time_limit: float | None  # seconds in the loop
    speed_guess: float  # steps per second, until some have been timed; 0 without a time limit
    peak_rate: float
    min_rate: float
    schedule: str
    warmup_steps: int | None  # None: by the run's length
    evaluations: int  # in the whole run
    evaluation_sequences: int  # of the validation text, in each
    evaluate_every: int | None  # steps, instead of `evaluations`
    seed: int

    def share(self, state: State) -> float:
        """How much of the run is done, from 0 to 1."""
        done = state.seconds / self.time_limit if self.time_limit else state.step / self.steps
        return min(1.0, done)

    def total_steps(self, state: State) -> float:
        """The run's length in steps, which in a run by the clock follows from its speed so far."""
        if not self.time_limit:
            return self.steps
        return self.time_limit * (state.step / state.seconds if state.step >= 5 else self.speed_guess)

    def rate(self, state: State) -> float:
        """The learning rate of the next step; each return to an earlier state has halved it."""
        total_steps = self.total_steps(state)
        warmup: float | None = self.warmup_steps
        if warmup is None:  # fewer than some twenty steps harm a short run: docs/experiments.md
            warmup = max(0.05 * total_steps, min(20, 0.2 * total_steps))
        planned = learning_rate(
            state.step, total_steps,
            kind=self.schedule, peak=self.peak_rate, minimum=self.min_rate, warmup_steps=warmup,
        )  # fmt: skip
        return 0.5**state.rollbacks * planned

    def evaluation_is_due(self, state: State) -> bool:
        """Whether the model is to be evaluated before the next step: always at the start and at the end."""
        if not state.rows:
            return True
        last = state.rows[-1]
        if last["step"] == state.step:
            return False
        share = self.share(state)
        if share >= 1:
            return True
        if self.evaluate_every:
            return state.step % self.evaluate_every == 0
        share_then = last["seconds"] / self.time_limit if self.time_limit else last["step"] / self.steps
        return share >= (math.floor(share_then * self.evaluations) + 1) / self.evaluations

    def batches_of(self, step: int) -> range:
        """The numbers of the micro-batches of a step."""
        return range(step * self.grad_accum, (step + 1) * self.grad_accum)

    def seed_of(self, step: int) -> int:
        """The seed of a step's dropout."""
        return self.seed + 1_000_003 * (step + 1)


def default_rate(config: TrainConfig) -> float:
    """The peak rate of a run that neither its flags nor its preset give one."""
    return PEAK_RATES[config.optimizer] * 384 / config.model.n_embd


def make_plan(
    config: TrainConfig,
    *,
    sequences: int,
    batch_size: int,
    grad_accum: int,
    sequences_per_epoch: int,
    val_tokens: int,
    batch_seconds: float = 0.0,
) -> Plan:
    """The plan of a run whose steps are divided like that.

    batch_seconds: how long `sequences / config.grad_accum` sequences take to evaluate, for a run by the clock.
    Raises UserError where the rates contradict each other.
    """
    peak_rate = config.learning_rate or default_rate(config)
    if config.min_lr > peak_rate:
        raise UserError(f"--min_lr {config.min_lr} is above the peak rate, {peak_rate:.2g}: set --learning_rate")
    tokens_per_step = sequences * config.model.context_length
    steps_per_epoch = sequences_per_epoch / sequences
    steps = config.max_steps or math.ceil(config.epochs * steps_per_epoch)
    time_limit, speed_guess = None, 0.0
    # Evaluations are counted in batches that do not depend on how many processes share a step.
    batches_per_step = config.grad_accum
    affordable = EVALUATION_SHARE * steps * batches_per_step * 3  # forward alone takes a third of training
    if config.max_minutes:
        limit = 60 * config.max_minutes
        affordable = EVALUATION_SHARE * limit / batch_seconds
        at_the_end = batch_seconds * val_tokens * batches_per_step / tokens_per_step
        time_limit = limit - min(at_the_end, 0.2 * limit)
        speed_guess = 1 / (3 * batch_seconds * batches_per_step)
    evaluations = max(1, min(EVALUATIONS, int(affordable / EVALUATION_BATCHES)))
    if config.eval_every and not config.max_minutes:
        evaluations = max(1, steps // config.eval_every)
    batches = config.eval_batches or max(1, int(affordable / evaluations))
    return Plan(
        sequences=sequences,
        batch_size=batch_size,
        grad_accum=grad_accum,
        tokens_per_step=tokens_per_step,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        time_limit=time_limit,
        speed_guess=speed_guess,
        peak_rate=peak_rate,
        min_rate=config.min_lr,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        evaluations=evaluations,
        evaluation_sequences=max(GROUPS, batches * sequences // batches_per_step),
        evaluate_every=config.eval_every,
        seed=config.seed,
    )


def divide_step(sequences: int, batch_size: int, world: int) -> tuple[int, int]:
    """A process's share of a step's sequences: how many in a micro-batch, at most `batch_size`, and how many of those.

    Raises UserError where the processes cannot have equally many.
    """
    own, rest = divmod(sequences, world)
    if rest:
        near = max(n for n in range(1, min(world, sequences) + 1) if sequences % n == 0)
        raise UserError(f"{world} processes cannot share the {sequences} sequences of a step equally: start {near}")
    size = max(n for n in range(1, min(batch_size, own) + 1) if own % n == 0)
    return size, own // size
