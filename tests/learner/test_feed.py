"""Batches from tokens that lie on the device, against those gathered by NumPy."""

import numpy as np
import pytest
import torch

from slm.data.batches import TrainingBatches
from slm.learner.feed import Feed


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 65_535), (np.uint32, 70_000)])
def test_both_ways_give_the_same_batches(dtype, largest):
    ids = np.random.default_rng(0).integers(largest + 1, size=1000).astype(dtype)
    ids[500] = largest
    batches = TrainingBatches(ids, 4, 10, seed=1)
    near, far = Feed(batches, torch.device("cpu"), room=ids.nbytes), Feed(batches, torch.device("cpu"))
    assert near.tokens is not None
    assert far.tokens is None
    highest = 0
    for number in range(30):  # more than an epoch
        expected = batches(number)
        for feed in (near, far):
            for tensor, array in zip(feed(number), expected, strict=True):
                assert tensor.dtype == torch.int64
                assert np.array_equal(tensor.numpy(), array)
        highest = max(highest, int(expected[0].max()))
    assert highest == largest


def test_tokens_beyond_the_room_stay_where_they_are():
    ids = np.zeros(100, dtype=np.uint16)
    assert Feed(TrainingBatches(ids, 1, 10, seed=0), torch.device("cpu"), room=199).tokens is None
