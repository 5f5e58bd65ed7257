"""Whether a device computes what the CPU does: tried before a run trusts it with hours of work.

Apple's GPUs have given gradients wrong by factors of 10^3 to 10^5, without an error, after a pass with another batch
size, once a batch has more than 32,768 tokens (pytorch#177116). Nothing but a comparison shows that.

Legend: B sequences in a micro-batch, T context length.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from slm.config.model import ModelConfig
from slm.device import autocast
from slm.errors import UserError
from slm.learner.workers import Workers
from slm.model.gpt import GPT

CPU = torch.device("cpu")
MOST_TOKENS = 1 << 18  # tried in a batch: more would make a run wait
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.1, torch.float16: 0.1}  # fp32: TF32's products are off by 0.001


class Computed(NamedTuple):
    """What a pass over a batch gives."""

    loss: float  # mean, in nats a token
    gradients: dict[str, Tensor]  # of each parameter, times sqrt(B T); on the CPU


def compute(model: GPT, ids: Tensor, targets: Tensor, device: torch.device, dtype: torch.dtype) -> Computed:
    """A forward and a backward pass of `model`, which is on `device`; ids, targets: (B, T), on the CPU."""
    size = ids.numel()
    with autocast(device, dtype):
        loss, _ = model.loss(ids.to(device), targets.to(device))
    (loss / size**0.5).backward()  # neither the sum's gradient nor the mean's could be too large or small for fp16
    gradients = {
        name: weight.grad.float().cpu() for name, weight in model.named_parameters() if weight.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return Computed(float(loss.detach()) / size, gradients)


@functools.lru_cache
def difference(
    shape: ModelConfig,
    rows: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    compute_there: Callable[..., Computed] = compute,
) -> str:
    """What `device` computes otherwise than the CPU does in fp32, with figures; empty: nothing.

    A narrow model is tried at the run's own batches: B sequences, half as many, and B again; and a block as wide as
    `shape` with an embedding of `rows` rows on a single sequence. compute_there: what computes on the device.
    """
    narrow = dataclasses.replace(shape, vocab_size=256, n_layer=1, n_head=1, n_embd=32, dropout=0.0)
    wide = dataclasses.replace(shape, vocab_size=rows, n_layer=1, dropout=0.0)
    T = shape.context_length
    B = min(batch_size, max(1, MOST_TOKENS // T))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for config, batches in ((wide, [(1, min(T, 128))]), (narrow, [(B, T), ((B + 1) // 2, T), (B, T)])):
            model = GPT(config)
            there = copy.deepcopy(model).to(device)
            for batch in batches:
                ids, targets = torch.randint(config.vocab_size, (2, *batch))
                expected = compute(model, ids, targets, CPU, torch.float32)
                found = compute_there(there, ids, targets, device, dtype)
                if said := _compared(expected, found, TOLERANCE[dtype]):
                    return f"{said}, in a batch of {batch[0]:,} x {batch[1]:,} tokens"
    return ""


def _compared(expected: Computed, found: Computed, tolerance: float) -> str:
    if not abs(found.loss - expected.loss) <= tolerance * expected.loss:
        return f"the loss is {found.loss:.4g} instead of {expected.loss:.4g}"
    whole = sum(float(gradient.norm()) ** 2 for gradient in expected.gradients.values()) ** 0.5
    for name, gradient in expected.gradients.items():
        there, norm = found.gradients[name], float(gradient.norm())
        error = float((there - gradient).norm())
        size = norm + 0.01 * whole  # a small gradient is a difference of large numbers
        if not error <= tolerance * size:
            norms = f"its norm is {float(there.norm()):.4g}, not {norm:.4g}"
            return f"the gradient of {name} is off by {error / size:.0%}: {norms}"
    return ""


def check_device(
    shape: ModelConfig, rows: int, batch_size: int, device: torch.device, dtype: torch.dtype, workers: Workers
) -> None:
    """Raises UserError, in every process, where the device of one of them computes otherwise than a CPU."""
    said = difference(shape, rows, batch_size, device, dtype)
    (wrong,) = workers.max(float(bool(said)))
    if wrong:
        raise UserError(
            f"{device.type} does not compute what the CPU does ({said or 'in another process'}), and what is learned "
            f"there cannot be trusted: take a smaller --batch_size, --precision fp32, another version of PyTorch than "
            f"{torch.__version__}, or --device cpu"
        )
