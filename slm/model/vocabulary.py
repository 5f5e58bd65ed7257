"""Training only those rows of the vocabulary that a text uses, with the same loss as training them all.

A token that never occurs in the training text is never an input and never a target: all its gradient comes from the
softmax's denominator. Tokens like that whose vectors are equal therefore have equal gradients, and stay equal. So they
share one row, which counts in the softmax as often as there are tokens behind it. Value, gradients (the shared row's is
the sum of its tokens') and accuracy are those of the model with all rows. A text of some megabytes uses a fifth of
GPT-2's 50,257 tokens, and the output layer is most of a small model's work.

Legend: V vocabulary, R rows, C width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MULTIPLE = 64  # of which the number of rows is made one: matrix products are faster so


class Rows:
    """Which row of the embedding belongs to which token.

    Tokens in use have a row each, in the order of their ids; so have the first of the unused ones, up to a multiple
    of 64 rows; all other unused tokens share the last row.
    """

    def __init__(self, in_use: npt.NDArray[np.bool_]):
        """in_use: whether a token occurs in the training text, (V,)."""
        used, unused = np.flatnonzero(in_use), np.flatnonzero(~in_use)
        alone = min(-(len(used) + 1) % MULTIPLE, max(0, len(unused) - 1))
        self.shared = len(unused) - alone  # tokens behind the last row; 0: none is unused
        own = np.concatenate([used, unused[:alone]])  # tokens with a row of their own
        self.count = len(own) + (self.shared > 0)
        of_token = np.full(len(in_use), len(own))
        of_token[own] = np.arange(len(own))
        self.of_token = torch.from_numpy(of_token)  # (V,)
        self._tokens = torch.from_numpy(np.append(own, unused[alone:][:1]))  # one of each row, (R,)

    def widen(self, embedding: Tensor) -> Tensor:
        """(R, C) -> (V, C): every token its vector."""
        return embedding[self.of_token.to(embedding.device)]

    def narrow(self, embedding: Tensor) -> Tensor:
        """(V, C) -> (R, C), the inverse where unused tokens have equal vectors."""
        return embedding[self._tokens.to(embedding.device)]
