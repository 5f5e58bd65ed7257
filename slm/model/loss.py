"""Output layer and cross-entropy in one, over a few rows at a time.

The logits of a whole batch are by far the largest tensor of a small model: 32 x 128 tokens times 50,257 floats are
823 MB, and the usual way holds them several times over. Here a chunk of rows goes through output layer, softmax, loss
and both gradients in the forward pass, and only the gradients are kept.

Legend: N rows (tokens), R rows of a chunk, C width, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.errors import first_line

CHUNK_ELEMENTS = 1 << 25  # logits held at a time (128 MB in fp32): large enough for fast matrix products on a CPU
CUDA_CHUNK_ELEMENTS = 1 << 30  # where memory allows: between chunks all of the weights' gradient is added to
SHRUNK = 1 / 64  # factor of fp16 vectors whose products are summed over rows, so that the sum stays below 65,504
ALIGNED = 64  # a number of rows of the weights that CUDA's fastest products take


def chunk_elements(device: torch.device) -> int:
    """Logits held at a time on `device`: on CUDA as many as fill a 32nd of its memory at 4 bytes each.

    That is 2^30 (2 GB in bf16, 21,363 rows of 50,257) from 128 GB on, and 125 million (0.25 GB) on a card of 16 GB.
    """
    if device.type != "cuda":
        return CHUNK_ELEMENTS
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(CHUNK_ELEMENTS, min(CUDA_CHUNK_ELEMENTS, memory // 32 // 4))


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
        with torch.autocast(device, enabled=False):
            loss, correct, *gradients = _in_chunks(hidden, weight.to(kind), targets, shared, with_gradient)
        if with_gradient:
            ctx.save_for_backward(*gradients)
            ctx.kinds = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (d_hidden, d_weight), (of_hidden, of_weight) = ctx.saved_tensors, ctx.kinds
        return d_hidden.to(of_hidden) * scale, (d_weight * scale).to(of_weight), None, None, None


def _in_chunks(hidden: Tensor, w: Tensor, targets: Tensor, shared: int, with_gradient: bool) -> tuple[Tensor, ...]:
    """The loss, the number of right guesses and, if asked for, the gradients of `hidden` and of `w`.

    w: (V, C), in the type of products.
    """
    V, kind = len(w), w.dtype
    guessable = V - (shared > 1)  # of the tokens behind a shared row none is the likeliest
    log_shared = math.log(max(1, shared))
    if hidden.is_cuda:
        w = F.pad(w, (0, 0, 0, -V % ALIGNED))  # logits beyond V are 0, and are left so as their gradient
    rows = max(128, chunk_elements(hidden.device) // len(w) // 128 * 128)
    # Every chunk uses the same memory: to get fresh pages from the system each time took a fifth of the whole.
    memory = torch.empty(min(rows, len(hidden)), len(w), dtype=kind, device=hidden.device)
    kernel = cuda_kernel() if hidden.is_cuda else None
    in_fp32 = memory if kind == torch.float32 or kernel else torch.empty_like(memory, dtype=torch.float32)
    loss = hidden.new_zeros((), dtype=torch.float32)
    correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    if with_gradient:
        d_hidden, d_weight = torch.empty_like(hidden, dtype=kind), torch.zeros_like(w, dtype=torch.float32)
        d_weight_memory = None if kind in (torch.float32, torch.float64) else torch.empty_like(w)
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        h = hidden[chunk].to(kind)
        logits = torch.mm(h, w.T, out=memory[: len(h)])  # (R, V)
        given = (targets[chunk], guessable, log_shared, with_gradient)
        if kernel:
            nats, right = kernel(logits, V, *given)
        else:
            own = logits[:, :V]
            nats, right = to_gradient(own, *given, own if in_fp32 is memory else in_fp32[: len(h), :V])
        loss += nats
        correct += right
        if with_gradient:
            torch.mm(logits, w, out=d_hidden[chunk])
            if kind == torch.float16:
                d_weight.add_(torch.mm(logits.T, h * SHRUNK, out=d_weight_memory), alpha=1 / SHRUNK)
            elif d_weight_memory is not None:
                d_weight += torch.mm(logits.T, h, out=d_weight_memory)
            else:
                d_weight.addmm_(logits.T.float(), h.float())
    return (loss, correct, d_hidden, d_weight[:V]) if with_gradient else (loss, correct)


def to_gradient(
    logits: Tensor, targets: Tensor, guessable: int, log_shared: float, with_gradient: bool, in_fp32: Tensor
) -> tuple[Tensor, Tensor]:
    """The summed loss of these logits and the number of right guesses.

    logits: (R, V); with_gradient: their gradient is put in their place. guessable: a guess of this row or a later one
    is wrong. log_shared: the logarithm of the number of tokens behind the last row. in_fp32: memory for the logits in
    fp32; where they are in fp32, they themselves.
    """
    counts, target = targets >= 0, targets.clamp(min=0).unsqueeze(1)
    x = logits if in_fp32 is logits else in_fp32.copy_(logits)
    top, guess = x.max(dim=1, keepdim=True)  # (R, 1) each
    of_target = x.gather(1, target)
    if log_shared:  # exp(logit) counts several times in the sum
        x[:, -1] += log_shared
        top = x.gather(1, guess)
    p = torch.softmax(x, dim=1, out=x)
    # The likeliest token's probability is at least 1 / V, so its logarithm is exact where others underflow.
    log_sum = top - p.gather(1, guess).log()
    nats = ((log_sum - of_target).squeeze(1) * counts).sum()
    right = (((guess == target) & (guess < guessable)).squeeze(1) & counts).sum()
    if with_gradient:
        p.scatter_add_(1, target, torch.full_like(of_target, -1.0))
        p.mul_(counts.unsqueeze(1))
        if p is not logits:
            logits.copy_(p)
    return nats, right


@functools.cache
def cuda_kernel() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """`to_gradient` as one kernel, where it can be built and computes the same; else None, and a line says why."""
    try:
        from slm.model.loss_cuda import to_gradient as kernel

        logits = F.pad(torch.linspace(-8, 8, 3 * 3000, device="cuda").view(3, 3000).sin(), (0, 8))
        given = (torch.tensor([5, -1, 2999], device="cuda"), 2999, 1.0, True)
        expected = logits.clone()
        ours = kernel(logits, 3000, *given)
        plain = to_gradient(expected[:, :3000], *given, expected[:, :3000])
        for found, known in ((logits, expected), *zip(ours, plain, strict=True)):
            torch.testing.assert_close(found.float(), known.float(), rtol=1e-4, atol=1e-5)
    except Exception as error:  # no Triton, no compiler for it, a card that is too old
        reason = f"{type(error).__name__}: {first_line(error)[:120]}"
        print(f"the loss is computed without its CUDA kernel, which takes longer ({reason})")
        return None
    return kernel
