"""Signals."""

import signal

import pytest

from tests.runs import change, in_step, load, rows, stopped_at, train


def test_a_second_signal_stops_at_once_and_what_was_saved_is_whole(config):
    train(change(config, max_steps=4))

    def twice():
        signal.raise_signal(signal.SIGINT)  # to this thread: two that another one got late would count as one
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(change(config, resume=True), in_step(7, twice))
    assert load(config, "last.pt").facts["step"] == 4


def test_a_run_that_is_stopped_before_its_second_evaluation_keeps_what_it_has_learned(config):
    """Not the untrained model of its first; the reports have planned evaluations alone."""
    config = change(config, max_steps=1000, eval_every=500, learning_rate=0.02)
    assert train(config, stopped_at(60)) == 130
    best = load(config)
    assert best.facts["step"] == 60
    assert best.facts["val"]["loss"] < 5
    assert [row["step"] for row in rows(config)] == [0]
    assert load(config, "last.pt").training["state"]["best_step"] == 60


def test_a_slow_evaluation_is_not_made_at_a_signal_where_a_trained_model_is_kept(config):
    def befall(run):
        stopped_at(15)(run)
        in_step(14, lambda: setattr(run, "evaluation_seconds", 11.0))(run)

    assert train(change(config, max_steps=1000, eval_every=10, learning_rate=0.02), befall) == 130
    assert load(config).facts["step"] == 10


def test_a_model_says_that_it_has_barely_trained(config):
    train(change(config, max_steps=1))
    assert load(config).facts["barely_trained"] is True
    train(change(config, max_steps=200, learning_rate=0.02, overwrite=True))
    assert load(config).facts["barely_trained"] is False
