"""The optimizers: AdamW (Loshchilov and Hutter, 2019), and beside it Muon (Jordan et al., 2024) if asked for."""

from __future__ import annotations

from torch import nn, optim

# Muon's rate for AdamW's rate of 1, both scaled to the same size of update (Liu et al., 2025); docs/experiments.md.
MUON_RATE = 3.0


def make_optimizers(
    model: nn.Module, kind: str, *, betas: tuple[float, float], weight_decay: float
) -> list[optim.Optimizer]:
    """One AdamW over all of `model`, or (kind `muon`) one over all but the blocks' matrices, and a Muon over those.

    Matrices and embeddings decay, biases and norms do not. A group's rate is to be set to its "rate_factor" times the
    schedule's. AdamW is the fused one.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    in_blocks = {id(p) for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    for_muon = [p for p in matrices if id(p) in in_blocks] if kind == "muon" else []
    for_adamw = [p for p in matrices if id(p) not in in_blocks] if kind == "muon" else matrices
    groups = [
        {"params": for_adamw, "weight_decay": weight_decay, "rate_factor": 1.0},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0, "rate_factor": 1.0},
    ]
    optimizers: list[optim.Optimizer] = [optim.AdamW(groups, betas=betas, fused=True)]
    if for_muon:
        group = {"params": for_muon, "weight_decay": weight_decay, "rate_factor": MUON_RATE}
        optimizers.append(optim.Muon([group], momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"))
    return optimizers
