"""What lies between the products of the chunked loss (`slm.model.loss`), as one kernel for NVIDIA's GPUs.

A row of logits comes from the card's memory once, for the sum of its softmax, and once more, mostly from the cache, to
be replaced by its gradient. As PyTorch's own kernels that is some twenty passes, and torch.compile makes it three.

Legend: R rows (tokens), V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 2048, 4  # logits that a program holds at a time, and its warps: the fastest of nine pairs on an H200


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    logits, targets, nats, right, stride, guessable, log_shared,
    V: tl.constexpr, WIDTH: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    counts = target >= 0
    target = tl.maximum(target, 0)
    of_target = tl.load(logits + target).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    top, total, likelier = float("-inf"), 0.0, 0
    for start in range(0, WIDTH, BLOCK):
        token = start + columns
        logit = tl.load(logits + token, mask=token < WIDTH, other=0.0).to(tl.float32)
        logit = tl.where(token < V, logit, float("-inf"))  # not the load's mask: an odd V would make it slow
        likelier += tl.sum(((logit > of_target) | ((logit == of_target) & (token < target))).to(tl.int32))
        logit += tl.where(token == V - 1, log_shared, 0.0)
        higher = tl.maximum(top, tl.max(logit))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logit - higher))
        top = higher
    log_sum = top + tl.log(total)
    tl.store(nats + row, tl.where(counts, log_sum - of_target, 0.0))
    tl.store(right + row, (counts & (likelier == 0) & (target < guessable)).to(tl.int32))
    if GRADIENT:
        for start in range(0, WIDTH, BLOCK):
            token = start + columns
            logit = tl.load(logits + token, mask=token < WIDTH, other=0.0).to(tl.float32)
            logit += tl.where(token == V - 1, log_shared, 0.0)
            gradient = tl.exp(logit - log_sum) - tl.where(token == target, 1.0, 0.0)
            gradient = tl.where(counts & (token < V), gradient, 0.0)
            tl.store(logits + token, gradient.to(logits.dtype.element_ty), mask=token < WIDTH)


def to_gradient(
    logits: Tensor, V: int, targets: Tensor, guessable: int, log_shared: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """As `slm.model.loss.to_gradient`, which says what it takes and returns; what lies beyond V becomes 0."""
    R, width = logits.shape
    nats = torch.empty(R, dtype=torch.float32, device=logits.device)
    right = torch.empty(R, dtype=torch.int32, device=logits.device)
    _kernel[(R,)](
        logits, targets.contiguous(), nats, right, logits.stride(0), guessable, log_shared, V, width, with_gradient,
        BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return nats.sum(), right.sum()
