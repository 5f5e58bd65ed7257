"""Tokens -> batches of sequences. What a batch holds follows from (seed, step) alone: there is no state.

Legend: N tokens of the split, B batch size (sequences in a batch), T context length (tokens in a sequence).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

Inputs = npt.NDArray[np.int64]
IGNORED = -1  # a target that does not count towards the loss


class TrainingBatches:
    """Shuffled sequences of T tokens, followed by one more that is the last target; a batch may span two epochs.

    An epoch cuts the tokens into sequences from a random offset on, so that their borders move from epoch to epoch.
    Each token is a target exactly once an epoch, except for fewer than T at either end. In a text of fewer than 40 T
    tokens that could be more than 5 % of them. There as many sequences as fit lie side by side at a random offset if
    they leave out less than 5 %; otherwise there is one more, and neighbours overlap by random lengths, so that every
    token is a target at least once.

    ids: (N,), at least T + 1. rank, world: of `world` processes this one takes sequences rank, rank + world, ... of
    every batch.
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
        targets = len(ids) - 1
        if len(ids) >= 40 * context_length:
            self.sequences = (len(ids) - context_length) // context_length  # in an epoch, at any offset
        else:
            self.sequences, left_out = divmod(targets, context_length)
            self.sequences += 20 * left_out >= targets

    @functools.lru_cache(maxsize=2)  # noqa: B019 - lives as long as the run
    def _starts(self, epoch: int) -> npt.NDArray[np.int64]:
        """Where the sequences of `epoch` begin, in the order of training, (sequences,)."""
        random = np.random.default_rng((self.seed, epoch))
        room = len(self.ids) - 1 - self.sequences * self.context_length
        if room >= 0:
            offset = random.integers(min(self.context_length, room + 1))
            return offset + self.context_length * random.permutation(self.sequences)
        overlaps = np.sort(random.integers(1 - room, size=self.sequences))  # with all the sequences before
        overlaps[[0, -1]] = 0, -room  # the first sequence begins with the text, the last ends with it
        return random.permutation(self.context_length * np.arange(self.sequences) - overlaps)

    def starts(self, step: int) -> npt.NDArray[np.int64]:
        """Where the sequences of batch `step` begin, (B / world,)."""
        numbers = np.arange(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world)
        epochs, places = np.divmod(numbers, self.sequences)
        return np.concatenate([self._starts(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def __call__(self, step: int) -> tuple[Inputs, Inputs]:
        """Inputs and targets of batch `step`, each (B / world, T) int64."""
        places = self.starts(step)[:, None] + np.arange(self.context_length + 1)
        sequences = self.ids[places].astype(np.int64)  # (B / world, T + 1)
        return sequences[:, :-1], sequences[:, 1:]


def evaluation_batches(
    ids: npt.NDArray[np.integer[Any]],
    batch_size: int,
    context_length: int,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> list[npt.NDArray[np.int64]]:
    """Where the sequences of an evaluation begin, in batches of at most B: all N tokens, or `limit` sequences of them.

    A limited evaluation is spread evenly over the tokens, and so is each batch. rank, world: of `world` processes this
    one takes sequences rank, rank + world, ...; all take equally many, some of which are empty, beginning at N.
    """
    starts = np.arange(0, len(ids) - 1, context_length)
    if limit is not None and limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(np.int64)]
    starts = np.append(starts, np.full(-len(starts) % world, len(ids)))[rank::world]
    batches = -(-len(starts) // batch_size)
    return [starts[i::batches] for i in range(batches)]


def gather(
    ids: npt.NDArray[np.integer[Any]], starts: npt.NDArray[np.int64], context_length: int
) -> tuple[Inputs, Inputs]:
    """Inputs and targets of the sequences at `starts`, (B,): each (B, T); past N, inputs are 0 and targets IGNORED."""
    places = starts[:, None] + np.arange(context_length + 1)
    sequences = np.where(places < len(ids), ids[np.minimum(places, len(ids) - 1)].astype(np.int64), IGNORED)
    return np.maximum(sequences[:, :-1], 0), sequences[:, 1:].copy()
