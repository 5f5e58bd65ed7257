"""Keeps a run in its folder: its state, its best model, its reports."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.config.train import TrainConfig
from slm.data.corpus import Corpus
from slm.errors import UserError
from slm.evaluation.measure import Measures
from slm.learner.learner import Learner
from slm.training import folder, report, trust
from slm.training.cost import in_training
from slm.training.describe import duration, evaluated
from slm.training.folder import BEST, LAST, METRICS, PLOT, SAMPLES
from slm.training.guard import Guard
from slm.training.interrupt import unbroken
from slm.training.plan import Plan
from slm.training.showing import Showing, printable
from slm.training.state import Evaluation, Pace, State

BARELY_TRAINED = 0.75  # of the loss of a model that gives every token the same probability


class Keeper:
    """Writes what a run leaves, in the first process alone; all processes call it together."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        plan: Plan,
        state: State,
        learner: Learner,
        guard: Guard,
        out_dir: Path,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.config, self.corpus, self.plan, self.out_dir = config, corpus, plan, out_dir
        self.state, self.learner, self.guard = state, learner, guard
        self.workers, self.clock = learner.workers, clock
        self._add_to_board: Callable[[report.Row], None] | None = None
        self._drawn_at, self._drawing_took = 0.0, 0.0
        self._show = Showing()
        self.saved_step = 0

    def path(self, name: str) -> Path:
        """Where a file of the run lies."""
        return self.out_dir / name

    def begin(self) -> None:
        """Save the first state of a new run, then take away what an old one has left. Raises UserError as `save`."""
        self.save()
        if self.workers.rank == 0:
            folder.begin(self.out_dir)

    def save(self) -> None:
        """last.pt: all that --resume needs, whatever the number of processes then.

        Raises UserError where the disk refuses; the state saved before is still there.
        """
        self.guard.update_state()
        learner, state = self.learner, self.state
        training = {
            "state": dataclasses.asdict(state),
            **learner.state_dict(),
            "corpus": self.corpus.fingerprint,
            "batch_size": self.plan.batch_size,
            "windows": self.plan.sequences,
            "launch": folder.launch(),
            "rows": learner.model.rows_in_training,
            "config": folder.kept_settings(self.config),
            "stamp": trust.stamp(folder.kept_settings(self.config)),
        }
        facts = {"step": state.step, "text": self.corpus.description}
        saved = Checkpoint(learner.model.config, learner.weights(), self.corpus.tokenizer, facts, training)
        with self.workers.barrier(), unbroken():
            if self.workers.rank == 0:
                folder.save(self.out_dir, saved)
        self.saved_step = state.step

    def try_to_save(self) -> str:
        """Save; returns a warning where that fails: the state saved before is still there."""
        try:
            self.save()
        except UserError as error:
            return f"warning: {error}; the run goes on, and saves again in {self.config.save_every:g} min"
        return ""

    def rescue(self) -> str:
        """Save what an error of the program has left whole, the steps done before it. Returns what came of it."""
        if self.workers.world > 1 or not self.learner.is_whole:  # the others may be in the middle of an exchange
            return f"the state of step {self.saved_step:,} is the last one saved"
        return self.try_to_save() or f"saved after step {self.state.step:,}, before an error"

    def restore(self, saved: Checkpoint) -> None:
        """Put the run into a saved state. Raises UserError where that is not of such a run."""
        training: Any = saved.training
        state = State.of(training["state"])
        with folder.reporting_changes(self.path(LAST)):
            self.learner.check_state_dict(training, begun=state.step > state.skipped)
        self.learner.load_weights(saved.weights)
        self.learner.load_state_dict(training)
        self.state.become(state)
        self.guard.restart()
        self.saved_step = self.state.step
        if not self.workers.broadcast(lambda: self.path(BEST).exists()):
            self.state.best_loss = math.inf

    def go_back(self, trouble: str) -> str:
        """Return to the last saved state with half the learning rate. Raises UserError where that was done too often.

        Returns what is to be said about it.
        """
        state, most = self.state, self.config.max_rollbacks
        now = dataclasses.replace(state)
        if now.rollbacks >= most:
            returns = f", after {now.rollbacks} returns to an earlier state, each with half the rate"
            raise UserError(
                f"step {now.step:,}: {trouble}{returns if now.rollbacks else ''}: try a --learning_rate below "
                f"{self.plan.peak_rate:.2g}; {self.path(BEST)} is the best model until then"
            )
        self.restore(self.workers.broadcast(lambda: folder.latest(self.out_dir)[0]))
        state.rollbacks, state.pieces, state.seconds = now.rollbacks + 1, now.pieces, now.seconds
        state.skipped_in_a_row = 0
        state.checked_skipped = now.skipped - (state.skipped - state.checked_skipped)
        state.skipped = now.skipped
        return (
            f"step {now.step:,}: {trouble}; back to step {state.step:,}, with half the learning rate "
            f"({state.rollbacks} of at most {most} times)"
        )

    def keep(self, evaluation: Evaluation, pace: Pace) -> str:
        """Record an evaluation: save the model if it is the best so far, and bring the reports up to date.

        Returns what is to be said about it, with warnings of what the disk refused.
        """
        state, plan, val = self.state, self.plan, evaluation.val
        state.rows.append(
            report.row(
                step=state.step,
                epoch=state.step / plan.steps_per_epoch,
                seconds=state.seconds,
                learning_rate=state.rate,
                gradient_norm=float(self.guard.gradient_norm),
                tokens_per_second=pace.steps_per_second * plan.tokens_per_step,
                skipped_steps=state.skipped,
                rollbacks=state.rollbacks,
                train=evaluation.train,
                val=val,
            )
        )
        pace.restart()
        self.guard.evaluated()
        better = val.loss < state.best_loss
        warning = ""
        with self.workers.barrier():
            if self.workers.rank == 0:
                warning = self._write(evaluation, better)
        state.become(self.workers.broadcast(lambda: state))
        return warning + evaluated(plan, state.rows, evaluation.sample, val.error)

    def keep_at_stop(self, evaluation: Evaluation) -> str:
        """Keep a model that was measured where the run is stopped, if it is the best; returns what is to be said.

        The reports have planned evaluations alone, as they would be without the stop.
        """
        state, before, warning = self.state, dataclasses.replace(self.state), ""
        if not evaluation.val.loss < state.best_loss:
            return ""
        state.best_loss, state.best_step, state.evaluations_since_best = evaluation.val.loss, state.step, 0
        with self.workers.barrier():
            if self.workers.rank == 0:
                try:
                    self.save_best(evaluation.train, evaluation.val, evaluation.weights)
                except UserError as error:
                    warning = f"warning: {error}"
                    state.become(before)
        state.become(self.workers.broadcast(lambda: state))
        if state.best_step != state.step:
            return warning
        return self.try_to_save() or (
            f"step {state.step:,}: validation {evaluation.val.bits_per_byte:.4f} bits per byte, the lowest so far: kept"
        )

    def _write(self, evaluation: Evaluation, better: bool) -> str:
        """What the first process does of `keep`. Returns warnings."""
        state, warning = self.state, evaluation.warning
        if self._add_to_board is not None:
            warning += self._show("TensorBoard", self._add_to_board, state.rows[-1])
        state.evaluations_since_best += 1
        if better:
            before = dataclasses.replace(state)
            state.best_loss, state.best_step, state.evaluations_since_best = evaluation.val.loss, state.step, 0
            try:
                self.save_best(evaluation.train, evaluation.val, evaluation.weights)
            except UserError as error:  # the next one that is better than what is there is saved
                warning += f"warning: {error}\n"
                state.become(before)
        state.samples.append(dict(evaluation.sample))
        return warning + self.write_reports(in_a_hurry=True)

    def save_best(self, train: Measures, val: Measures, weights: Mapping[str, Tensor]) -> None:
        """best_model.pt: these weights, and what is known of them. Raises UserError where the disk refuses."""
        facts = {
            "step": self.state.best_step,
            "tokens_seen": self.state.best_step * self.plan.tokens_per_step,
            "text": printable(self.corpus.description),
            "train": dataclasses.asdict(train),
            "val": dataclasses.asdict(val),
            "barely_trained": val.loss > BARELY_TRAINED * math.log(self.corpus.tokenizer.vocab_size),
            "config": folder.kept_settings(self.config),
        }
        shape = dataclasses.replace(self.config.model, vocab_size=self.corpus.tokenizer.vocab_size)
        with unbroken():
            checkpoint.save(self.path(BEST), Checkpoint(shape, weights, self.corpus.tokenizer, facts))

    def write_reports(self, *, in_a_hurry: bool) -> str:
        """Bring the reports up to date; in a hurry, drawing training.png takes at most 1 % of the time.

        Returns warnings of what failed, each once.
        """
        now, path, state = self.clock(), self.path, self.state
        warnings = self._show(METRICS, report.write_metrics, path(METRICS), state.rows)
        warnings += self._show(SAMPLES, report.write_samples, path(SAMPLES), state.samples)
        if not in_a_hurry or now - self._drawn_at > 100 * self._drawing_took:
            weights, _ = in_training(self.learner.model.config, self.learner.model.config.vocab_size)
            title = f"{self.corpus.description}\n{weights:,} parameters, {duration(state.seconds)}"
            warnings += self._show(PLOT, report.draw, path(PLOT), state.rows, self.plan, title)
            self._drawn_at = self.clock()
            self._drawing_took = self._drawn_at - now
        return warnings

    def open_board(self) -> None:
        """Show the run's curves in TensorBoard, too. Raises UserError where that is not installed."""
        self._add_to_board = report.tensorboard(self.path("tensorboard"), self.state.rows)
