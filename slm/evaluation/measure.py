"""How well a model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from slm.data.batches import Inputs, evaluation_batches, gather
from slm.data.encoding import Tokens
from slm.data.tokenizer import Tokenizer
from slm.device import autocast
from slm.learner.workers import Workers
from slm.model.gpt import GPT


@dataclass(frozen=True)
class Measures:
    """Averages over the tokens of a text."""

    loss: float  # nats a token
    accuracy: float  # share of tokens that were the likeliest
    bits_per_byte: (
        float  # of the UTF-8 text: comparable between tokenizers; the ends of text cost bits and have no bytes
    )
    tokens: int
    error: float = 0.0  # standard error of the bits per byte where a part of a text was measured for all of it, else 0

    @property
    def bits(self) -> str:
        """The bits per byte, with their error where there is one."""
        return bits_in_words(self.bits_per_byte, self.error)

    @property
    def perplexity(self) -> float:
        """exp(loss): as unsure as a choice among this many equally likely tokens."""
        return math.exp(min(self.loss, 700.0))

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}, perplexity {self.perplexity:,.2f}, token accuracy {self.accuracy:.1%}, "
            f"{self.bits}, over {self.tokens:,} tokens"
        )


def bits_in_words(bits: float, error: float) -> str:
    """Bits per byte, with their standard error where there is one."""
    return f"{bits:.4f}{f' +- {error:.4f}' if error > 0 else ''} bits per byte"


def evaluate(
    model: GPT,
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    dtype: torch.dtype,
    limit: int | None = None,
    workers: Workers | None = None,
) -> Measures:
    """Measure `model` on `tokens`, as `measure` does. Its mode (dropout on or off) is put back as it was."""
    device = model.token_embedding.weight.device

    @torch.no_grad()
    def loss(ids: Inputs, targets: Inputs) -> tuple[float, int]:
        with autocast(device, dtype):
            nats, correct = model.loss(torch.from_numpy(ids).to(device), torch.from_numpy(targets).to(device))
        return float(nats), int(correct)

    was_training = model.training
    model.eval()
    measured = measure(
        loss, model.config.context_length, tokens, tokenizer, batch_size=batch_size, limit=limit, workers=workers
    )
    model.train(was_training)
    return measured


def measure(
    loss: Callable[[Inputs, Inputs], tuple[float, int]],
    context_length: int,
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    limit: int | None = None,
    workers: Workers | None = None,
) -> Measures:
    """Measure on `tokens`: all of them, or `limit` windows spread evenly over them, always the same ones.

    Each batch is spread over them, too, so that batches differ by chance alone: that gives the error of a part, which
    is NaN where there is one batch.
    loss: inputs and targets (B, T) -> the summed loss in nats, the number of tokens guessed right.
    Windows of the context length do not overlap, so that a token has half a context before it on average.
    workers: the processes that share the windows; each gets the measures of all.
    """
    workers = workers or Workers()
    parts = []  # (batches, 4): nats, right guesses, tokens and bytes of each
    batches = evaluation_batches(tokens.ids, batch_size, context_length, limit, workers.rank, workers.world)
    for starts in batches if limit else tqdm(batches, desc="measuring", unit="batch", leave=False, delay=2):
        ids, targets = gather(tokens.ids, starts, context_length)
        counted = targets[targets >= 0]
        parts.append((*loss(ids, targets), len(counted), np.take(tokenizer.byte_counts, counted).sum()))
    by_batch = np.array(parts, dtype=np.float64).reshape(-1, 4)
    nats, right, *counts = workers.sum(*by_batch.sum(axis=0).tolist())
    n_targets, n_bytes = (max(int(count), 1) for count in counts)
    error, share = 0.0, n_targets / max(len(tokens.ids) - 1, 1)
    if share < 1 and math.isfinite(nats):
        # That of a ratio estimated from clusters: Cochran, Sampling Techniques, 1977, chapter 6.
        residuals = by_batch[:, 0] - nats / n_bytes * by_batch[:, 3]
        squares, groups = workers.sum(float(residuals @ residuals), float(np.sum(by_batch[:, 2] > 0)))
        error = math.sqrt(squares * groups / (groups - 1 or math.nan) * (1 - share)) / n_bytes
    bits = math.log(2)
    return Measures(nats / n_targets, right / n_targets, nats / bits / n_bytes, n_targets, error / bits)
