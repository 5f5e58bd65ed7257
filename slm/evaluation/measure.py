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

    @property
    def perplexity(self) -> float:
        """exp(loss): as unsure as a choice among so many equally likely tokens."""
        return math.exp(min(self.loss, 700.0))

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}, perplexity {self.perplexity:,.2f}, token accuracy {self.accuracy:.1%}, "
            f"{self.bits_per_byte:.4f} bits per byte, over {self.tokens:,} tokens"
        )


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

    loss: inputs and targets (B, T) -> the summed loss in nats, the number of tokens guessed right.
    Windows of the context length do not overlap, so that a token has half a context before it on average.
    workers: the processes that share the windows; each gets the measures of all.
    """
    workers = workers or Workers()
    nats, correct, n_targets, n_bytes = 0.0, 0, 0, 0
    batches = evaluation_batches(tokens.ids, batch_size, context_length, limit, workers.rank, workers.world)
    for starts in tqdm(batches, desc="measuring", unit="batch", leave=False, delay=2, disable=limit is not None):
        ids, targets = gather(tokens.ids, starts, context_length)
        batch_nats, batch_correct = loss(ids, targets)
        nats += batch_nats
        correct += batch_correct
        counted = targets[targets >= 0]
        n_targets += len(counted)
        n_bytes += int(np.take(tokenizer.byte_counts, counted).sum())
    nats, right, *counts = workers.sum(nats, correct, n_targets, n_bytes)
    n_targets, n_bytes = (max(int(count), 1) for count in counts)
    return Measures(nats / n_targets, right / n_targets, nats / math.log(2) / n_bytes, n_targets)
