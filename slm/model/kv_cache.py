"""The keys and values of the tokens that a model has read, so that the next token costs one token's work.

Legend: L layers, B sequences, T new tokens, H heads, S capacity in tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Room for S tokens of B sequences, taken once; of sequence b `lengths[b]` tokens are in use, from the left."""

    def __init__(self, n_layer: int, batch_size: int, n_head: int, capacity: int, head_width: int, like: Tensor):
        shape = (n_layer, batch_size, n_head, capacity, head_width)
        self.keys = like.new_zeros(shape)  # (L, B, H, S, D)
        self.values = like.new_zeros(shape)  # (L, B, H, S, D)
        self.set_lengths([0] * batch_size)

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Say how many tokens of each sequence count, (B,): what is behind them is forgotten."""
        self.lengths = list(lengths)
        self.longest = max(lengths, default=0)
        self._even = all(length == self.longest for length in lengths)
        # (B, 1): where the next token of each sequence goes
        self.ends = torch.tensor(self.lengths, dtype=torch.int64).to(self.keys.device).unsqueeze(1)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new `keys` and `values`, (B, H, T, D), behind each sequence's old ones.

        Returns all of that layer's, (B, H, longest + T, D). T must be 1 where lengths differ. They grow only by
        `advance`, once all layers have written.
        """
        end = self.longest + keys.size(2)
        if self._even:
            self.keys[layer, :, :, self.longest : end] = keys
            self.values[layer, :, :, self.longest : end] = values
        else:
            rows = torch.arange(len(self.lengths), device=keys.device)
            self.keys[layer][rows, :, self.ends[:, 0]] = keys[:, :, 0]
            self.values[layer][rows, :, self.ends[:, 0]] = values[:, :, 0]
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def mask(self, T: int) -> Tensor | None:
        """Which of S = longest + T tokens each of T new ones may look at, (T, S) or (B, 1, T, S); None: all before."""
        S = self.longest + T
        if not self._even:
            return (torch.arange(S, device=self.ends.device) <= self.ends)[:, None, None]
        return torch.ones(T, S, dtype=torch.bool, device=self.ends.device).tril(S - T) if 1 < T < S else None

    def advance(self, tokens: int) -> None:
        """Count `tokens` more of each sequence as read."""
        self.lengths = [length + tokens for length in self.lengths]
        self.longest += tokens
        self.ends += tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Make the sequences those of these places, in this order."""
        index = torch.tensor(rows, dtype=torch.int64).to(self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.set_lengths([self.lengths[row] for row in rows])

    def replace(self, rows: Sequence[int], other: KVCache) -> None:
        """Put the sequences of `other`, not longer than there is room for, in the places of these."""
        index = torch.tensor(rows, dtype=torch.int64).to(self.keys.device)
        self.keys[:, index, :, : other.longest] = other.keys[:, :, :, : other.longest]
        self.values[:, index, :, : other.longest] = other.values[:, :, :, : other.longest]
        lengths = dict(enumerate(self.lengths)) | dict(zip(rows, other.lengths, strict=True))
        self.set_lengths(list(lengths.values()))

    def append(self, other: KVCache) -> None:
        """Add the sequences of `other`."""
        self.keys = torch.cat([self.keys, other.keys], dim=1)
        self.values = torch.cat([self.values, other.values], dim=1)
        self.set_lengths([*self.lengths, *other.lengths])
