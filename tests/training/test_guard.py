"""NaN, spikes of the loss and skipped steps: a run goes back, or says why it ends."""

import math

import pytest
import torch

from slm.errors import UserError
from slm.learner.learner import Outcome
from slm.training.guard import Guard
from slm.training.state import State
from tests.learner.test_learner import Reads
from tests.runs import CPU, change, load, nan_losses, new_run, rows, train


def test_a_loss_that_is_no_number_stops_with_an_explanation(config):
    with pytest.raises(
        UserError, match=r"step .*: .* NaN or infinite, after 3 returns .*: try a --learning_rate below 1e\+30"
    ):
        train(change(config, learning_rate=1e30, grad_clip=0.0, warmup_steps=0))
    assert load(config).facts["step"] == 0
    assert all(weight.isfinite().all() for weight in load(config, "last.pt").weights.values())


def test_a_nan_gradient_changes_nothing(config):
    train(change(config, eval_every=4), nan_losses({2, 5}))
    assert [(row["step"], row["skipped_steps"], row["rollbacks"]) for row in rows(config)] == [
        (0, 0, 0), (4, 1, 0), (8, 2, 0)
    ]  # fmt: skip
    assert math.isfinite(rows(config)[-1]["val_loss"])


def test_a_run_whose_gradients_stay_broken_goes_back_and_on_with_half_the_rate(config, capsys):
    def befall(run):
        nan_losses(range(30, 50))(run)
        save = run.keeper.save
        run.keeper.save = lambda: save() if run.state.step in (0, 30, 60) else None

    config = change(config, max_steps=60, eval_every=30, schedule="wsd", warmup_steps=0, save_every=1e-9)
    train(config, befall)
    said = "".join(capsys.readouterr())
    assert "step 50: the gradient was NaN or infinite 20 times in a row; back to step 30, with half the" in said
    before, after = rows(config)[1:]
    assert (before["step"], after["step"], after["skipped_steps"], after["rollbacks"]) == (30, 60, 20, 1)
    config = change(config, resume=True, overwrite=False, max_steps=1000)
    run = new_run(config, start=load(config, "last.pt"))
    assert run.state.rollbacks == 1
    assert run.plan.rate(run.state) == pytest.approx(0.5 * run.plan.peak_rate)


def test_the_training_loss_after_a_return_is_that_of_the_steps_that_count(config):
    """The state of step 10 has the sums of ten steps; those of the steps that were given up are gone."""
    losses = {}

    def befall(run):
        nan_losses(range(15, 35))(run)
        save, step = run.keeper.save, run.learner.step
        run.keeper.save = lambda: save() if run.state.step in (0, 10) else None

        def noting(*batches, **more):
            outcome = step(*batches, **more)
            losses[run.state.step] = float(outcome.loss)
            return outcome

        run.learner.step = noting

    train(change(config, max_steps=40, eval_every=20, save_every=1e-9), befall)
    assert [(row["step"], row["rollbacks"]) for row in rows(config)] == [(0, 0), (20, 1), (40, 1)]
    assert len(losses) == 40
    for row, first in zip(rows(config)[1:], (0, 20), strict=True):
        assert row["train_loss"] == pytest.approx(sum(losses[first + n] for n in range(20)) / 20, rel=1e-5)


def test_a_loss_that_rises_by_more_than_a_nat_is_a_breakdown():
    state = State()
    guard = Guard(state, CPU)
    for number, loss_sum, trouble in [
        (20, 20 * 4.0, ""),
        (39, 19 * 9.0, ""),  # too early to tell
        (40, 20 * 4.9, ""),
        (60, 20 * 5.1, "the loss rose from 4.00 to 5.10"),
    ]:
        state.step = number
        guard.loss_sum.fill_(loss_sum)
        assert guard.trouble(final=False) == trouble


def test_taking_note_of_a_step_reads_nothing_from_the_device():
    guard = Guard(State(), CPU)
    with Reads() as reads:
        guard.saw(Outcome(torch.tensor(2.0), torch.tensor(0.25), torch.tensor(1.0), False, 1))
    assert reads.names == []
    guard.update_state()
    assert (guard.state.trained_steps, guard.state.trained_loss, guard.state.trained_accuracy) == (1, 2.0, 0.25)


def test_skipped_steps_alone_are_trouble_too():
    """Not so many in a row, but no step between two checks that could be judged by."""
    state = State(step=40, skipped=30, skipped_in_a_row=10, checked_step=20, checked_skipped=10)
    assert Guard(state, CPU).trouble(final=False) == "the gradient was NaN or infinite in all of the last 20 steps"


def test_an_overflow_storm_in_fp16_goes_back_and_stops_in_the_end(config):
    with pytest.raises(UserError, match=r"step 20: the gradient was NaN .* 20 times in a row, after 2 returns"):
        train(change(config, max_steps=100, max_rollbacks=2), nan_losses(range(10**6)), dtype=torch.float16)
