"""The loop of a training run: evaluate, save, step, and go back where something broke."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

from slm.training.garbage import collect_garbage, garbage_held_off
from slm.training.profiling import profiling
from slm.training.progress import Progress
from slm.training.run import Clock, Run
from slm.training.state import Evaluation

STOP_SECONDS = 10.0  # that the last evaluation may have taken for another one to be made at a signal


@garbage_held_off()
def loop(run: Run, *, clock: Clock, stop: Callable[[], int] = lambda: 0) -> int:
    """Train to the end of the run, or until early stopping. Returns 0, or the signal that cut the run short.

    stop: the number of a signal to save and stop for; 0: none. Raises UserError where the run cannot be saved at its
    start or at a signal, and where training breaks down too often.
    """
    plan, state, config, keeper = run.plan, run.state, run.config, run.keeper
    if state.step == 0 and not state.rows:
        keeper.begin()
    started = clock() - state.seconds
    saved_at = state.seconds
    with (
        Progress(plan, state, run.learner.device, clock) as bar,
        profiling(config.profile, run.learner.device, keeper.out_dir, bar.write) as after_step,
    ):
        while True:
            # Processes stay in step because they agree on these two numbers and on each step's loss.
            state.seconds, signal = run.workers.max(clock() - started, stop())
            if signal:
                keeper.save()
                bar.write(_measured_at_stop(run))
                return int(signal)
            if state.seconds - saved_at > 60 * config.save_every:
                bar.write(keeper.try_to_save())
                saved_at = state.seconds

            done = plan.share(state) >= 1
            trouble = run.guard.trouble(final=done)
            if not trouble and plan.evaluation_is_due(state):
                evaluation = _evaluate(run, clock)
                bar.write(keeper.keep(evaluation, run.pace))
                if not math.isfinite(evaluation.val.loss):
                    trouble = "the validation loss is NaN or infinite"
                elif config.patience and state.evaluations_since_best >= config.patience:
                    bar.write(f"stopped early: {config.patience} evaluations without a better validation loss")
                    return 0
            if trouble:
                bar.write(keeper.go_back(trouble))
                continue
            if done:
                return 0

            begun = clock()
            state.rate = plan.rate(state)
            outcome = run.learner.step(
                [run.batch(number) for number in plan.batches_of(state.step)],
                rate=state.rate,
                seed=plan.seed_of(state.step),
                pieces=state.pieces,
            )
            state.step += 1
            run.guard.saw(outcome)
            run.pace.took(clock() - begun)
            if outcome.pieces > state.pieces:
                state.pieces = outcome.pieces
                bar.write(_short_of_memory(plan.batch_size, outcome.pieces))
            bar.after_step(outcome, run.pace)
            after_step()


def _evaluate(run: Run, clock: Clock) -> Evaluation:
    begun = clock()
    collect_garbage()
    run.guard.update_state()
    evaluation = run.evaluator.evaluate(run.learner, run.state)
    run.evaluation_seconds = clock() - begun
    return evaluation


def _measured_at_stop(run: Run) -> str:
    """Measure and keep a model that has learned since its last evaluation; returns what is to be said about it.

    Only where that is quick, or nothing but the untrained model is kept. A second Ctrl-C breaks it off.
    """
    state = run.state
    (seconds,) = run.workers.max(run.evaluation_seconds)
    is_measured = not state.rows or state.rows[-1]["step"] == state.step
    if is_measured or (seconds > STOP_SECONDS and state.best_step > 0):
        return ""
    with contextlib.suppress(KeyboardInterrupt):
        return run.keeper.keep_at_stop(run.evaluator.evaluate(run.learner, state))
    return ""


def _short_of_memory(batch_size: int, pieces: int) -> str:
    now = -(-batch_size // pieces)
    return f"not enough memory for {batch_size} sequences at a time: {now} from here on, with equal results"
