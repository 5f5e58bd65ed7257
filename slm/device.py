"""Which device to compute on, and in which precision."""

from __future__ import annotations

import contextlib
import math
import os
import sys
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


# FLOP/s of dense bf16 products (fp16 before Ampere), from the makers' data sheets; the first name found counts
PEAK_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12,
    "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "A10": 125e12, "V100": 125e12, "T4": 65e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that the device could do at most; None where that is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for chip, peak in PEAK_FLOPS.items() if chip in name), None)


def make_deterministic() -> None:
    """From here on PyTorch takes only algorithms that give the same bits every time, or warns where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def peak_memory(device: torch.device) -> int | None:
    """Bytes that this process has held at most, on a GPU those of the device; None where that cannot be known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps" or sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def total_memory(device: torch.device) -> float:
    """Bytes that the device has, infinite where that cannot be known."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError):  # Windows
        return math.inf


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory is used up: Python's, the CPU's or a GPU's."""
    said = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in said or "ut of memory" in said


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Matrix products in `dtype` inside the block; weights and everything delicate stay fp32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of products in `dtype`, roughly: measured on a CPU, elsewhere by the data sheet or a guess."""
    if device.type == "cpu":
        return 2 * 512 * 384 * 1536 / _seconds(dtype)
    return peak_flops(device) or 1e13


def _seconds(dtype: torch.dtype) -> float:
    """The fastest of four products of the size that a block has, (512, 384) x (384, 1536), on the CPU."""
    a, b = torch.ones(512, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return best
