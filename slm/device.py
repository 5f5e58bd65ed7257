"""Which device to compute on, and in which precision."""

from __future__ import annotations

import contextlib
import time

import torch

from slm.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto: the first there is of CUDA, Apple's GPU, CPU. Raises UserError if it is not."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, usable in there.items() if usable)
    if not there[name]:
        usable = ", ".join(device for device, usable in there.items() if usable)
        raise UserError(f"--device {name} is not available to this PyTorch ({torch.__version__}); there is: {usable}")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of matrix products; `auto` is what is fast on `device`.

    CUDA: bf16 where the chip has it, else fp16. CPU: bf16 where it is measured to beat fp32 clearly, as with AMX; most
    x86 chips have no bf16 units and are twice as slow with it. Apple's GPU: fp32. Raises UserError for fp16 on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; on a CPU take fp32 or bf16")
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _seconds(torch.bfloat16) * 1.5 < _seconds(torch.float32):
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Matrix products in `dtype` inside the block; weights and everything delicate stay fp32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def _seconds(dtype: torch.dtype) -> float:
    """The fastest of four products of the size that a block has, (512, 384) x (384, 1536), on the CPU."""
    a, b = torch.ones(512, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return best
