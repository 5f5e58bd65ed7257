"""Output layer and cross-entropy in one, over a few rows at a time.

The logits of a whole batch are by far the largest tensor of a small model: 32 x 128 tokens times 50,257 floats are
823 MB, and the usual way holds them several times over. Here a chunk of rows goes through output layer, softmax, loss
and both gradients in the forward pass, and only the gradients are kept.

Legend: N rows (tokens), R rows of a chunk, C width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 25  # logits held at a time (128 MB in fp32): large enough for fast matrix products on a CPU
CUDA_CHUNK_ELEMENTS = 1 << 28  # where memory allows: the twenty kernels of a chunk take 10 us each to start
SHRUNK = 1 / 64  # factor of fp16 vectors whose products are summed over rows, so that the sum stays below 65,504


def chunk_elements(device: torch.device) -> int:
    """Logits held at a time on `device`: on CUDA 6 bytes each, in fp32 and in the products' type, a 32nd of its memory.

    That is 2^28 (1.6 GB, 5,248 rows of 50,257) from 48 GB on, and 83 million (0.5 GB) on a card of 16 GB.
    """
    if device.type != "cuda":
        return CHUNK_ELEMENTS
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(CHUNK_ELEMENTS, min(CUDA_CHUNK_ELEMENTS, memory // 32 // 6))


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, shared: int = 1) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of softmax(hidden @ weight.T) in nats, and the number of rows whose target is the likeliest.

    hidden (N, C), weight (V, C), targets (N,) int64; rows with a target below 0 count for nothing.
    shared: the number of equally likely tokens behind the last row of `weight` (`slm.model.vocabulary`).
    Both results are scalars; the loss is fp32 and has gradients for `hidden` and `weight`. Products are computed in the
    autocast type where autocast is on.
    """
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss, correct = _LinearCrossEntropy.apply(hidden, weight, targets, shared, with_gradient)
    return loss, correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shared: int, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        w = weight.to(kind)  # (V, C)
        rows = max(128, chunk_elements(hidden.device) // len(w) // 128 * 128)
        compute = _out_of_place if torch.compiler.is_compiling() else _in_place
        with torch.autocast(device, enabled=False):
            loss, correct, *gradients = compute(hidden, w, targets, shared, with_gradient, rows)
        if with_gradient:
            ctx.save_for_backward(*gradients)
            ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * scale, (d_weight * scale).to(ctx.weight_dtype), None, None, None


def _in_place(
    hidden: Tensor, w: Tensor, targets: Tensor, shared: int, with_gradient: bool, rows: int
) -> tuple[Tensor, ...]:
    """The loss, the number of right guesses and, if asked for, the gradients of `hidden` and of `w`.

    w: (V, C), in the type of products. rows: R.
    """
    kind, guessable = w.dtype, len(w) - (shared > 1)  # of the tokens behind a shared row none is the likeliest
    loss = hidden.new_zeros((), dtype=torch.float32)
    correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    # Every chunk uses the same memory: to get fresh pages from the system each time took a fifth of the whole.
    logits_memory = torch.empty(min(rows, len(hidden)), len(w), dtype=torch.float32, device=hidden.device)
    kind_memory = logits_memory if kind == torch.float32 else torch.empty_like(logits_memory, dtype=kind)
    if with_gradient:
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(w, dtype=torch.float32)
        d_weight_memory = None if kind in (torch.float32, torch.float64) else torch.empty_like(w)
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        h, target = hidden[chunk].to(kind), targets[chunk]
        counts, target = target >= 0, target.clamp(min=0).unsqueeze(1)
        logits, in_kind = logits_memory[: len(h)], kind_memory[: len(h)]  # (R, V)
        torch.mm(h, w.T, out=in_kind)
        if kind != torch.float32:
            logits.copy_(in_kind)
        top, guess = logits.max(dim=1, keepdim=True)  # (R, 1) each
        right = logits.gather(1, target)
        if shared > 1:  # exp(logit) counts `shared` times in the sum
            logits[:, -1] += math.log(shared)
            top = logits.gather(1, guess)
        p = torch.softmax(logits, dim=1, out=logits)
        # The likeliest token's probability is at least 1 / V, so its logarithm is exact where others underflow.
        log_sum = top - p.gather(1, guess).log()
        loss += ((log_sum - right).squeeze(1) * counts).sum()
        right_guess = (guess == target) & (guess < guessable)
        correct += (right_guess.squeeze(1) & counts).sum()
        if with_gradient:
            p.scatter_add_(1, target, torch.full_like(right, -1.0))
            p.mul_(counts.unsqueeze(1))
            d_logits = p if kind == torch.float32 else in_kind.copy_(p)
            d_hidden[chunk] = d_logits @ w
            if kind == torch.float16:
                d_weight.add_(torch.mm(d_logits.T, h * SHRUNK, out=d_weight_memory), alpha=1 / SHRUNK)
            elif d_weight_memory is not None:
                d_weight += torch.mm(d_logits.T, h, out=d_weight_memory)
            else:
                d_weight.addmm_(p.T, h.float())
    return (loss, correct, d_hidden, d_weight) if with_gradient else (loss, correct)


def _out_of_place(
    hidden: Tensor, w: Tensor, targets: Tensor, shared: int, with_gradient: bool, rows: int
) -> tuple[Tensor, ...]:
    """The same for torch.compile, which fuses what lies between the products into one kernel.

    Nothing is changed in place: PyTorch 2.11 compiles a gradient that is filled in after it was made to zeros.
    """
    kind, guessable = w.dtype, len(w) - (shared > 1)
    tokens = torch.arange(len(w), device=hidden.device)
    loss = hidden.new_zeros((), dtype=torch.float32)
    correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    d_hidden, d_weight = [], torch.zeros_like(w, dtype=torch.float32)
    shrunk = SHRUNK if kind == torch.float16 else 1.0
    for start in range(0, len(hidden), rows):
        h, target = hidden[start : start + rows].to(kind), targets[start : start + rows]
        counts, target = target >= 0, target.clamp(min=0).unsqueeze(1)
        logits = (h @ w.T).float()  # (R, V)
        guess, right = logits.argmax(dim=1, keepdim=True), logits.gather(1, target)  # (R, 1) each
        if shared > 1:
            logits = torch.where(tokens < guessable, logits, logits + math.log(shared))
        log_sum = logits.logsumexp(dim=1, keepdim=True)
        loss = loss + ((log_sum - right).squeeze(1) * counts).sum()
        right_guess = (guess == target) & (guess < guessable)
        correct = correct + (right_guess.squeeze(1) & counts).sum()
        if with_gradient:
            d_logits = (((logits - log_sum).exp() - (tokens == target).float()) * counts.unsqueeze(1)).to(kind)
            d_hidden.append((d_logits @ w).to(hidden.dtype))
            d_weight = d_weight + (d_logits.T @ (h * shrunk)).float() / shrunk
    return (loss, correct, torch.cat(d_hidden), d_weight) if with_gradient else (loss, correct)
