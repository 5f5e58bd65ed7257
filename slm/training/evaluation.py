"""How well a model predicts a text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from slm.config import EvaluateConfig
from slm.data.batches import evaluation_batches, gather
from slm.data.corpus import Tokens, encode
from slm.data.sources import open_source
from slm.data.tokenizer import Tokenizer
from slm.device import autocast, pick_device, pick_precision
from slm.files import user_path
from slm.model import checkpoint
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


@torch.no_grad()
def evaluate(
    model: GPT, tokens: Tokens, tokenizer: Tokenizer, *, batch_size: int, dtype: torch.dtype, limit: int | None = None
) -> Measures:
    """Measure `model` on `tokens`: all of them, or `limit` batches spread evenly over them, always the same ones.

    Windows of the model's context length do not overlap, so that a token has half a context before it on average.
    The model's mode (dropout on or off) is put back as it was.
    """
    device = model.token_embedding.weight.device
    T = model.config.context_length
    loss, correct, n_targets, n_bytes = 0.0, 0, 0, 0
    was_training = model.training
    model.eval()
    batches = evaluation_batches(tokens.ids, batch_size, T, limit)
    for starts in tqdm(batches, desc="measuring", unit="batch", leave=False, delay=2, disable=limit is not None):
        ids, targets = gather(tokens.ids, starts, T)
        with autocast(device, dtype):
            batch_loss, batch_correct = model.loss(
                torch.from_numpy(ids).to(device), torch.from_numpy(targets).to(device)
            )
        loss += float(batch_loss)
        correct += int(batch_correct)
        counted = targets[targets >= 0]
        n_targets += len(counted)
        n_bytes += int(np.take(tokenizer.byte_counts, counted).sum())
    model.train(was_training)
    n_targets, n_bytes = max(n_targets, 1), max(n_bytes, 1)
    return Measures(loss / n_targets, correct / n_targets, loss / math.log(2) / n_bytes, n_targets)


def main(config: EvaluateConfig) -> None:
    """`slm evaluate`: print how well a checkpoint predicts a text."""
    loaded = checkpoint.load(user_path(config.model_path))
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    source = open_source(config.dataset, text_field=config.text_field, errors=config.errors, held_out=True)
    tokens = encode(source, loaded.tokenizer, config.cache_dir)
    print(f"text       {source.description}: {len(tokens):,} tokens, {tokens.documents:,} documents")
    measured = evaluate(loaded.model(device), tokens, loaded.tokenizer, batch_size=config.batch_size, dtype=dtype)
    print(f"{config.model_path}: {measured}")
