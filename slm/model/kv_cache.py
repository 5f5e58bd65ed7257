"""The keys and values of the tokens that a model has read, so that the next token costs one token's work.

Legend: L layers, B batch, H heads, S capacity in tokens, D head width.
"""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """Room for S tokens of B sequences, taken once; `length` tokens of it are in use, the same number in each row."""

    def __init__(self, n_layer: int, batch_size: int, n_head: int, capacity: int, head_width: int, like: Tensor):
        shape = (n_layer, batch_size, n_head, capacity, head_width)
        self.keys = like.new_zeros(shape)  # (L, B, H, S, D)
        self.values = like.new_zeros(shape)  # (L, B, H, S, D)
        self.batch_size, self.length = batch_size, 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new `keys` and `values`, (B, H, T, D); returns all of that layer's, (B, H, length + T, D).

        `length` grows only by `advance`, once all layers have written.
        """
        end = self.length + keys.size(2)
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as read."""
        self.length += tokens

    def clear(self) -> None:
        """Forget all tokens, keeping the room."""
        self.length = 0
