"""What is decided before a run begins."""

import pytest

from slm.training.state import State
from tests.runs import change, new_run


@pytest.mark.parametrize(("steps", "batches"), [(100, 2), (1000, 4), (30_000, 135)])
def test_evaluations_take_under_5_percent_by_default(config, steps, batches):
    run = new_run(change(config, max_steps=steps, eval_batches=None))
    plan = run.plan
    forward_passes = (plan.evaluations + 1) * plan.evaluation_sequences * plan.grad_accum / plan.sequences
    assert forward_passes / 3 < 0.05 * steps
    assert plan.evaluations >= min(20, steps // 30)
    assert plan.evaluation_sequences == batches * 4


@pytest.mark.parametrize(("steps", "warmup"), [(10, 2), (60, 12), (216, 20), (1000, 50)])
def test_warm_up_is_a_twentieth_of_the_run_but_no_less_than_a_short_one_needs(config, steps, warmup):
    plan = new_run(change(config, max_steps=steps, learning_rate=0.01)).plan
    rates = [plan.rate(State(step=step)) for step in range(steps)]
    assert rates[0] == pytest.approx(0.01 / warmup)
    assert rates.index(max(rates)) in (warmup - 1, warmup)
    assert max(rates) == pytest.approx(0.01, rel=0.01)
