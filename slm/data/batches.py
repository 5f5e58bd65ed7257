"""Tokens -> batches. Which windows a batch holds follows from (seed, step) alone: nothing is carried along.

Legend: N tokens of the split, B windows in a batch, T context length.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

Inputs = npt.NDArray[np.int64]
IGNORED = -1  # a target that does not count


class TrainingBatches:
    """Shuffled windows of T tokens, the T + 1st being the last target; the epochs follow one another without a seam.

    An epoch cuts the tokens into windows from a random phase on, so that window borders move from epoch to epoch;
    each token between the ragged ends is a target exactly once.

    ids: (N,), at least T + 1. rank, world: this process takes windows rank, rank + world, ... of every batch.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.integer[Any]],
        batch_size: int,
        context_length: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.ids, self.batch_size, self.context_length, self.seed = ids, batch_size, context_length, seed
        self.rank, self.world = rank, world
        self.windows = max(1, (len(ids) - context_length) // context_length)  # in an epoch, at any phase

    @functools.lru_cache(maxsize=2)  # noqa: B019 - lives as long as the run
    def _starts(self, epoch: int) -> npt.NDArray[np.int64]:
        """Where the windows of `epoch` begin, in the order of training, (windows,)."""
        random = np.random.default_rng((self.seed, epoch))
        room = len(self.ids) - 1 - self.windows * self.context_length
        phase = random.integers(min(self.context_length, room + 1))
        return phase + self.context_length * random.permutation(self.windows)

    def starts(self, step: int) -> npt.NDArray[np.int64]:
        """Where the windows of batch `step` begin, (B / world,)."""
        numbers = np.arange(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world)
        epochs, places = np.divmod(numbers, self.windows)
        return np.concatenate([self._starts(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def __call__(self, step: int) -> tuple[Inputs, Inputs]:
        """Inputs and targets of batch `step`, each (B / world, T) int64."""
        places = self.starts(step)[:, None] + np.arange(self.context_length + 1)
        windows = self.ids[places].astype(np.int64)  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]


def evaluation_batches(
    ids: npt.NDArray[np.integer[Any]],
    batch_size: int,
    context_length: int,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> list[npt.NDArray[np.int64]]:
    """Where the windows of an evaluation begin, in batches of at most B: all of (N,), or `limit` windows of them.

    rank, world: this process takes windows rank, rank + world, ...; all have equally many, some beyond the end.
    """
    starts = np.arange(0, len(ids) - 1, context_length)
    if limit is not None and limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(np.int64)]
    starts = np.append(starts, np.full(-len(starts) % world, len(ids)))[rank::world]
    return [starts[i : i + batch_size] for i in range(0, len(starts), batch_size)]


def gather(
    ids: npt.NDArray[np.integer[Any]], starts: npt.NDArray[np.int64], context_length: int
) -> tuple[Inputs, Inputs]:
    """Inputs and targets of the windows at `starts`, each (B, T); past the end, inputs are 0 and targets IGNORED."""
    places = starts[:, None] + np.arange(context_length + 1)
    windows = np.where(places < len(ids), ids[np.minimum(places, len(ids) - 1)].astype(np.int64), IGNORED)
    return np.maximum(windows[:, :-1], 0), windows[:, 1:].copy()
