"""What the formats have in common: the weights as arrays, and the comparison of what was written with PyTorch.

Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slm.checkpoint.file import Checkpoint
from slm.errors import UserError

Array = npt.NDArray[np.float32]


def weights(loaded: Checkpoint) -> dict[str, Array]:
    """The checkpoint's fp32 weights by their names, with zeros for the biases of a model that has none.

    Linear weights are (out, in). GPT-2 in other programs always has biases.
    """
    found = {name: tensor.float().numpy() for name, tensor in loaded.weights.items()}
    for name in [name for name in found if name.endswith(".weight") and "embedding" not in name]:
        found.setdefault(name.removesuffix("weight") + "bias", np.zeros(len(found[name]), dtype=np.float32))
    return found


def random_ids(loaded: Checkpoint, batch: int = 3) -> npt.NDArray[np.int64]:
    """Token ids to compare on, (batch, T): as many as fit half the context, so that half of it stays free."""
    length = max(1, loaded.config.context_length // 2)
    return np.random.default_rng(0).integers(loaded.config.vocab_size, size=(batch, length))


@torch.inference_mode()
def expected_logits(loaded: Checkpoint, ids: npt.NDArray[np.int64]) -> Array:
    """What PyTorch computes for ids (B, T): logits (B, T, V)."""
    return loaded.model()(torch.from_numpy(ids)).numpy()


def compare(actual: npt.NDArray[Any], expected: Array, tolerance: float = 1e-4) -> str:
    """Compare logits, each (..., V), by their greatest difference; returns the result in words.

    The difference is relative to the largest logit where that is above 1. Raises UserError where it is above
    `tolerance`, or anything is not a number.
    """
    difference = float(np.abs(actual - expected).max()) if actual.shape == expected.shape else float("nan")
    if not difference <= tolerance * max(1.0, float(np.abs(expected).max())):
        raise UserError(
            f"the exported model is not the same: its logits differ by {difference:.2g} from PyTorch's"
            if actual.shape == expected.shape
            else f"the exported model is not the same: logits {actual.shape} instead of {expected.shape}"
        )
    return "matches PyTorch"


def compare_distributions(actual: npt.NDArray[Any], expected: Array, tolerance: float) -> str:
    """For rounded weights: one line with the mean Kullback-Leibler divergence in nats of logits, each (..., V).

    It is what the rounding adds to the loss on text that follows the model's own distribution. Raises UserError where
    it is above `tolerance`, or anything is not a number.
    """
    log_p, log_q = (np.asarray(x, np.float64) for x in (expected, actual))
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (log_p, log_q))
    divergence = float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    if not divergence <= tolerance:
        raise UserError(f"the exported model is not the same: it diverges by {divergence:.2g} nats a token")
    return f"matches PyTorch but for rounding, which adds {divergence:.1e} nats a token"
