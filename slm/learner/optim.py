"""The optimizers: AdamW (Loshchilov and Hutter, 2019), and beside it Muon (Jordan et al., 2024) if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

from slm.learner.workers import divided_as, is_divided, whole

# Muon's rate for AdamW's rate of 1, both scaled to the same size of update (Liu et al., 2025); docs/experiments.md.
MUON_RATE = 1.5

# x -> a x + b x^3 + c x^5 for each iteration: between them they bring singular values from 0.001 to about 1, each the
# best of its degree for what the one before it leaves (Amsel et al., 2025, "The Polar Express").
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# What the optimizers keep for a parameter: averages of its shape, and AdamW the number of its steps, ().
KEPT = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}
MARGIN = 1.01  # the first step is divided by it, so that rounding does not push a value beyond what they converge for


class Muon(optim.Optimizer):
    """Momentum, made orthogonal: every direction of a matrix is moved equally far.

    torch.optim.Muon does the same for one matrix after another, always in bf16 and in five iterations. Here matrices of
    one shape go through together, in the type that is fast on the device; three iterations learn more in a minute.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        iterations: int = 3,
        dtype: torch.dtype = torch.float32,
    ):
        """params: matrices (m, n); those with m = 3 n are taken for query, key and value on top of each other, and
        each is made orthogonal by itself. dtype: of the products; fp32 or bf16."""
        self.iterations, self.dtype = iterations, dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; its update's root mean square is 0.2 lr, about AdamW's.

        Several processes make the updates together. Of a matrix that is divided among them each changes its own part.
        """
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            if not parameters:
                continue
            gradients = [each.grad for each in parameters]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
            momenta = [self.state[each]["momentum_buffer"] for each in parameters]
            # All matrices at once: a kernel for each would take longer to start than to run on a GPU.
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            wanted = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            changes: list[tuple[nn.Parameter, Tensor]] = []  # of the divided ones
            for parameter, update in zip(parameters, map(whole, wanted), strict=True):
                m, n = parameter.shape
                to_change: Tensor = parameter
                if is_divided(parameter):
                    to_change = torch.zeros_like(update)
                    changes.append((parameter, to_change))
                height = n if m == 3 * n else m  # query, key and value are three matrices on top of each other
                for target, part in zip(to_change.split(height), update.split(height), strict=True):
                    wide = part if len(part) <= n else part.T
                    by_shape.setdefault((wide.shape[0], wide.shape[1]), []).append((target, wide))
            for (_, longer), pairs in by_shape.items():
                targets, parts = zip(*pairs, strict=True)
                updates = _orthogonal_together(torch.stack(parts), self.iterations, self.dtype)
                lying = [
                    update if update.shape == target.shape else update.T
                    for target, update in zip(targets, updates, strict=True)
                ]
                torch._foreach_add_(targets, lying, alpha=-0.2 * math.sqrt(longer) * group["lr"])
            for parameter, change in changes:
                parameter.add_(divided_as(parameter, change))


def orthogonal(matrices: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """The nearest half-orthogonal matrices, roughly: (K, m, n) with m <= n -> (K, m, n) in `dtype`.

    Singular values become about 1, but for very small ones; Newton-Schulz iterations, products alone.
    """
    x = matrices / (MARGIN * torch.linalg.matrix_norm(matrices, keepdim=True)).clamp(min=1e-20)
    x = x.to(dtype)
    for a, b, c in POLAR_EXPRESS[:iterations]:
        gram = x @ x.mT  # (K, m, m)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _orthogonal_together(matrices: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """The same, where each process of a run makes its share of the matrices and sends it to the others."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world == 1:
        return orthogonal(matrices, iterations, dtype)
    share = -(-len(matrices) // world)
    own = matrices[dist.get_rank() * share :][:share]  # of the last ones some have none
    sent = matrices.new_zeros(share, *matrices.shape[1:], dtype=dtype)
    sent[: len(own)] = orthogonal(own, iterations, dtype)
    received = sent.new_empty(world * share, *matrices.shape[1:])
    dist.all_gather_into_tensor(received.view(torch.uint8), sent.view(torch.uint8))  # gloo knows no bf16
    return received[: len(matrices)]


def make_optimizers(
    model: nn.Module,
    kind: str,
    *,
    betas: tuple[float, float],
    weight_decay: float,
    dtype: torch.dtype = torch.float32,
) -> Sequence[optim.Optimizer]:
    """One AdamW over all of `model`, or (kind `muon`) one over all but the blocks' matrices, and a Muon over those.

    Matrices and embeddings decay, biases and norms do not. A group's rate is to be set to its "rate_factor" times the
    schedule's. AdamW is the fused one. dtype: of the run's products.
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
        fast = torch.float32 if dtype == torch.float32 else torch.bfloat16  # fp16 could overflow
        optimizers.append(Muon([group], dtype=fast))
    return optimizers


def check_state(kept: Any, optimizer: optim.Optimizer, *, begun: bool) -> None:
    """Raises ValueError where `kept` cannot be the state_dict of such an `optimizer`. begun: after its first step."""
    groups = optimizer.state_dict()["param_groups"]
    if not isinstance(kept, dict) or kept.keys() != {"state", "param_groups"}:
        raise ValueError("an optimizer is not one's state")
    saved = kept["param_groups"]
    if not isinstance(saved, list) or len(saved) != len(groups):
        raise ValueError(f"an optimizer does not have {len(groups)} groups of weights")
    for group, own in zip(saved, groups, strict=True):
        numbers = group.get("params") if isinstance(group, dict) else None
        if not isinstance(numbers, list) or {*map(type, numbers)} != {int} or numbers != own["params"]:
            raise ValueError("an optimizer is for other weights")
        for name in own.keys() & group.keys():  # another version of PyTorch has others
            value, found = own[name], group[name]
            same = type(found) is type(value) or {type(found), type(value)} == {int, float}
            if not same or (isinstance(value, tuple) and [*map(type, found)] != [*map(type, value)]):
                raise ValueError(f"an optimizer's {name} is a {type(found).__name__}, or one of others")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names, state = KEPT[type(optimizer).__name__], kept["state"]
    if not isinstance(state, dict) or state.keys() != ({*range(len(parameters))} if state or begun else set()):
        raise ValueError("an optimizer's averages are not those of the weights")
    for number, of_one in state.items():
        shape = parameters[number].shape
        if not isinstance(of_one, dict) or {*of_one} != {*names}:
            raise ValueError(f"an optimizer keeps other averages than {', '.join(names)}")
        for name, value in of_one.items():
            usable = isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided
            if not usable or value.is_meta or value.shape != (() if name == "step" else shape):
                raise ValueError(f"an optimizer's {name} does not fit weights of shape {tuple(shape)}")
