"""Logits -> token: literal candidates, and draws against the distribution they should follow."""

import numpy as np
import pytest

from slm.inference.sampling import Sampling, biased, candidates, choose, log_probabilities, penalise

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], dtype=np.float32))


@pytest.mark.parametrize(
    ("how", "tokens", "probabilities"),
    [
        (Sampling(), [0, 1, 2, 3], [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0), [1], [1.0]),
        (Sampling(top_k=2), [1, 3], [4 / 7, 3 / 7]),
        (Sampling(top_k=9), [0, 1, 2, 3], [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_p=0.65), [1, 3], [4 / 7, 3 / 7]),
        (Sampling(top_p=0.75), [1, 2, 3], [4 / 9, 2 / 9, 3 / 9]),
        (Sampling(top_p=1e-9), [1], [1.0]),
        (Sampling(top_k=1, top_p=1e-17), [1], [1.0]),
        (Sampling(top_k=3, top_p=0.5), [1, 3], [4 / 7, 3 / 7]),  # 4/9 alone is under a half
        (Sampling(min_p=0.49), [1, 2, 3], [4 / 9, 2 / 9, 3 / 9]),
        (Sampling(min_p=0.51), [1, 3], [4 / 7, 3 / 7]),
        (Sampling(min_p=1.0), [1], [1.0]),
        (Sampling(min_p=0.3, temperature=0.5), [1, 3], [16 / 25, 9 / 25]),  # 4 / 16 is under 0.3
        (Sampling(top_k=3, top_p=0.9, min_p=0.6), [1, 3], [4 / 7, 3 / 7]),
        (Sampling(temperature=0.5), [0, 1, 2, 3], [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
    ],
)
def test_candidates(how, tokens, probabilities):
    chosen, p = candidates(LOGITS, how)
    assert chosen.tolist() == tokens
    assert p == pytest.approx(probabilities, abs=1e-6)


def test_of_equal_logits_the_lower_ids_come_first():
    logits = np.zeros(5, dtype=np.float32)
    assert candidates(logits, Sampling(temperature=0))[0].tolist() == [0]
    assert candidates(logits, Sampling(top_k=3))[0].tolist() == [0, 1, 2]
    assert candidates(logits, Sampling(top_p=0.5))[0].tolist() == [0, 1, 2]


def test_nucleus_is_that_of_a_full_sort():
    random = np.random.default_rng(0)
    for _ in range(200):
        logits = (random.normal(size=500) * 4).astype(np.float32)
        top_p = random.uniform(0.05, 0.999)
        p = np.exp(logits.astype(np.float64))
        p /= p.sum()
        order = np.argsort(-p)
        expected = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1]
        assert candidates(logits, Sampling(top_p=top_p))[0].tolist() == sorted(expected.tolist())


@pytest.mark.parametrize(
    "how",
    [Sampling(), Sampling(temperature=2.0), Sampling(top_k=3), Sampling(top_p=0.75), Sampling(min_p=0.4)],
)
def test_draws_follow_the_distribution(how):
    """Chi-square over 20,000 draws: 16.3 is exceeded once in a thousand at 3 degrees of freedom; the seed is fixed."""
    tokens, p = candidates(LOGITS, how)
    random = np.random.default_rng(1)
    draws = np.bincount([choose(LOGITS, how, random) for _ in range(20_000)], minlength=4)
    expected = np.zeros(4)
    expected[tokens] = 20_000 * p
    assert not draws[expected == 0].any()
    seen = expected > 0
    assert ((draws[seen] - expected[seen]) ** 2 / expected[seen]).sum() < 16.3


def test_a_temperature_that_is_nearly_zero_is_zero():
    for temperature in (1e-50, 1e-40, 1e-7):
        assert candidates(LOGITS, Sampling(temperature=temperature))[0].tolist() == [1]


def test_extreme_logits_do_not_overflow():
    logits = np.array([-1e30, 3e4, 2.9e4, -np.inf], dtype=np.float32)
    assert choose(logits, Sampling(temperature=0.01, top_p=0.9), np.random.default_rng(0)) == 1


def test_a_penalty_makes_what_was_seen_less_likely_on_either_side_of_zero():
    logits = np.array([2.0, -2.0, 2.0, 0.0], dtype=np.float32)
    seen = np.array([True, True, False, True])
    assert penalise(logits, seen, 2.0).tolist() == [1.0, -4.0, 2.0, 0.0]
    assert penalise(logits, seen, 2.0).dtype == np.float32


def test_log_probabilities():
    assert np.exp(log_probabilities(LOGITS, [0, 1, 2, 3])) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=1e-6)
    assert np.isfinite(log_probabilities(np.array([1e4, -1e4], dtype=np.float32), [0, 1])).all()


def test_penalties_by_count_and_biases():
    logits = np.array([1.0, -1.0, 0.5, 2.0], dtype=np.float32)
    how = Sampling(frequency_penalty=0.5, presence_penalty=0.25, logit_bias={3: -100.0, 1: 2.0})
    assert biased(logits, np.array([2, 0, 1, 0], dtype=np.int32), how).tolist() == [-0.25, 1.0, -0.25, -98.0]
    assert logits.tolist() == [1.0, -1.0, 0.5, 2.0]
    how = Sampling(frequency_penalty=-1.0)
    assert biased(logits, np.array([2, 0, 0, 0], dtype=np.int32), how).tolist() == [3.0, -1.0, 0.5, 2.0]
