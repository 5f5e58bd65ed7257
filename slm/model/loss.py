"""Output layer and cross-entropy in one, over a few rows at a time.

The logits of a whole batch are by far the largest tensor of a small model: 32 x 128 tokens times 50,257 floats are
823 MB, and the usual way holds them several times over. Here a chunk of rows goes through output layer, softmax, loss
and both gradients while it is in the forward pass, in place, and only the gradients are kept.

Legend: N rows (tokens), R rows of a chunk, C width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 25  # logits held at a time (128 MB in fp32): large enough for fast matrix products


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, shared: int = 1) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of softmax(hidden @ weight.T) in nats, and the number of rows whose target is the likeliest.

    hidden (N, C), weight (V, C), targets (N,) int64; rows with a target below 0 count for nothing.
    shared: so many equally likely tokens stand behind the last row of `weight` (`slm.model.vocabulary`).
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
        guessable = len(w) - (shared > 1)  # of the tokens behind a shared row none is the likeliest
        rows = max(128, CHUNK_ELEMENTS // len(w) // 128 * 128)
        loss = hidden.new_zeros((), dtype=torch.float32)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        # Every chunk uses the same memory: to get fresh pages from the system each time took a fifth of the whole.
        logits_memory = torch.empty(min(rows, len(hidden)), len(w), dtype=torch.float32, device=hidden.device)
        kind_memory = logits_memory if kind == torch.float32 else torch.empty_like(logits_memory, dtype=kind)
        if with_gradient:
            d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
            d_weight_memory = torch.empty_like(w) if kind == torch.bfloat16 else None
        with torch.autocast(device, enabled=False):
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
                if shared > 1:  # exp(logit) so many times in the sum
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
                    if d_weight_memory is not None:
                        d_weight += torch.mm(d_logits.T, h, out=d_weight_memory)
                    else:  # a sum over many rows could overflow in fp16
                        d_weight.addmm_(p.T, h.float())
        if with_gradient:
            ctx.save_for_backward(d_hidden, d_weight)
            ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * scale, (d_weight * scale).to(ctx.weight_dtype), None, None, None
