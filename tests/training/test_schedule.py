"""The learning rate at literal steps."""

import itertools

import pytest

from slm.training.schedule import learning_rate


def rates(kind, steps, **changes):
    settings = {"kind": kind, "peak": 1.0, "minimum": 0.1, "warmup_steps": 10, **changes}
    return [learning_rate(step, 110, **settings) for step in steps]


def test_warm_up_rises_to_the_peak():
    assert rates("cosine", [0, 4, 9, 10]) == pytest.approx([0.1, 0.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("kind", "middle", "late"),
    [("linear", 0.55, 0.19), ("cosine", 0.55, 0.1220246), ("wsd", 1.0, 0.55)],
)
def test_then_down_to_the_minimum(kind, middle, late):
    assert rates(kind, [60, 100, 110, 500]) == pytest.approx([middle, late, 0.1, 0.1])


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_never_rises_after_warm_up(kind):
    after = rates(kind, range(10, 111))
    assert all(later <= earlier for earlier, later in itertools.pairwise(after))


def test_without_warm_up_the_peak_comes_first():
    assert rates("linear", [0], warmup_steps=0) == [1.0]
