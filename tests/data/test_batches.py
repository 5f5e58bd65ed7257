"""Batches: every token a target once an epoch, a function of (seed, step, rank) alone."""

import numpy as np
import pytest

from slm.data.batches import IGNORED, TrainingBatches, evaluation_batches, gather


def epoch_of(batches, first=0):
    """Inputs and targets of as many batches as an epoch has sequences for."""
    steps = batches.sequences // batches.batch_size
    assert steps * batches.batch_size == batches.sequences
    parts = [batches(step) for step in range(first, first + steps)]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


@pytest.mark.parametrize(("tokens", "context", "batch"), [(1000, 10, 9), (1009, 10, 1), (41, 8, 5), (9, 8, 1)])
def test_in_an_epoch_each_token_is_a_target_once_up_to_the_ragged_ends(tokens, context, batch):
    batches = TrainingBatches(np.arange(tokens, dtype=np.uint16), batch, context, seed=3)
    for epoch in range(4):
        ids, targets = epoch_of(batches, epoch * batches.sequences // batch)
        assert (targets == ids + 1).all()
        seen = np.sort(targets.ravel())
        assert len(seen) > tokens - 2 * context
        assert (np.diff(seen) == 1).all()  # one unbroken stretch, nothing twice


@pytest.mark.parametrize("context", [8, 10])
def test_an_epoch_misses_less_than_5_percent_of_any_text(context):
    for tokens in range(context + 1, 60 * context):
        batches = TrainingBatches(np.arange(tokens), 1, context, seed=0)
        for epoch in range(2):
            targets = epoch_of(batches, epoch * batches.sequences)[1].ravel()
            assert 20 * (tokens - 1 - len(np.unique(targets))) < tokens - 1
            assert targets.size < tokens - 1 + context  # less than one sequence is there twice


@pytest.mark.parametrize(("tokens", "sequences"), [(11, 1), (12, 2), (30, 3), (31, 3), (32, 3), (33, 4), (399, 39)])
def test_a_short_text_is_used_up_to_its_end(tokens, sequences):
    batches = TrainingBatches(np.arange(tokens), 1, 10, seed=0)
    assert batches.sequences == sequences
    seen = np.concatenate([epoch_of(batches, epoch * sequences)[1].ravel() for epoch in range(40)])
    assert set(seen.tolist()) == set(range(1, tokens))


def test_literal_epochs_of_a_short_text():
    batches = TrainingBatches(np.arange(100, 111), 3, 4, seed=0)  # 10 targets: three sequences overlap by 2
    assert [np.sort(batches(epoch)[0][:, 0]).tolist() for epoch in range(4)] == SHORT


SHORT = [[100, 103, 106], [100, 102, 106], [100, 104, 106], [100, 102, 106]]


def test_sequence_borders_move_from_epoch_to_epoch():
    batches = TrainingBatches(np.arange(1000), 9, 10, seed=0)
    offsets = {int(epoch_of(batches, epoch * 11)[0].min()) for epoch in range(8)}
    assert len(offsets) >= 4
    assert offsets <= set(range(10))


def test_the_order_is_shuffled_anew_each_epoch():
    batches = TrainingBatches(np.arange(1000), 9, 10, seed=0)
    first, second = epoch_of(batches, 0)[0][:, 0], epoch_of(batches, 11)[0][:, 0]
    assert (np.diff(first) < 0).any()
    assert (first - first.min()).tolist() != (second - second.min()).tolist()


def test_a_batch_depends_on_seed_and_step_alone():
    ids = np.arange(500)
    one, other = TrainingBatches(ids, 4, 8, seed=1), TrainingBatches(ids, 4, 8, seed=1)
    for step in range(50):
        one(step)
    np.testing.assert_array_equal(one(7)[0], other(7)[0])
    assert (one(7)[0] != TrainingBatches(ids, 4, 8, seed=2)(7)[0]).any()


def test_literal_batch():
    ids, targets = TrainingBatches(np.arange(100, 260), 2, 4, seed=0)(0)
    assert ids.tolist() == LITERAL
    assert targets.tolist() == [[i + 1 for i in row] for row in LITERAL]
    assert ids.dtype == np.int64


LITERAL = [[147, 148, 149, 150], [211, 212, 213, 214]]


def test_a_batch_may_straddle_two_epochs():
    batches = TrainingBatches(np.arange(42), 4, 10, seed=0)  # 4 sequences and a token
    assert batches.sequences == 4
    straddling = TrainingBatches(np.arange(42), 3, 10, seed=0)
    whole, parts = [batches(epoch)[0] for epoch in range(3)], [straddling(step)[0] for step in range(4)]
    np.testing.assert_array_equal(np.concatenate(whole), np.concatenate(parts))


def test_ranks_share_a_batch():
    ids = np.arange(500)
    whole = TrainingBatches(ids, 6, 8, seed=1)(5)[0]
    parts = [TrainingBatches(ids, 6, 8, seed=1, rank=rank, world=2)(5)[0] for rank in range(2)]
    np.testing.assert_array_equal(whole[0::2], parts[0])
    np.testing.assert_array_equal(whole[1::2], parts[1])


def test_an_evaluation_has_every_target_once():
    tokens = np.arange(10, 37)
    inputs, targets = [], []
    for starts in evaluation_batches(tokens, 2, 8):
        x, y = gather(tokens, starts, 8)
        inputs.append(x)
        targets.append(y)
    flat = np.concatenate(targets).ravel()
    assert sorted(flat[flat != IGNORED]) == list(range(11, 37))
    assert np.concatenate(inputs).min() >= 0


def test_a_limited_evaluation_is_spread_over_the_text_and_so_is_each_batch():
    tokens = np.arange(8001)
    batches = evaluation_batches(tokens, 4, 8, limit=8)
    assert [starts.tolist() for starts in batches] == [[0, 2280, 4560, 6848], [1136, 3424, 5704, 7992]]
    assert len(evaluation_batches(tokens, 4, 8, limit=10_000)) == 250
