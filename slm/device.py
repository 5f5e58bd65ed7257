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


BF16_GAIN = 1.5  # by which its products must be faster on a CPU than those in fp32 to be worth their rounding
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of matrix products; `auto` is what is fast on `device`.

    CUDA: bf16 where the chip has it, else fp16. CPU: bf16 where it is measured to beat fp32 clearly, as with AMX; most
    x86 chips have no bf16 units and are twice as slow with it. Apple's GPU: fp32. Raises UserError for fp16 on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; on a CPU take fp32 or bf16")
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and timed_flops(device, torch.bfloat16) > BF16_GAIN * timed_flops(device, torch.float32):
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
    if sys.platform == "win32":
        return math.inf
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


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
        return timed_flops(device, dtype)
    return peak_flops(device) or 1e13


def timed_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of products in `dtype`, measured: the fastest of four; on a CPU of the size that a block has."""
    rows, inner, columns = (512, 384, 1536) if device.type == "cpu" else (8192, 4096, 4096)
    a = torch.ones(rows, inner, dtype=dtype, device=device)
    b = torch.ones(inner, columns, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        float(torch.mm(a, b)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


def compiles_by_default(device: torch.device) -> bool:
    """Whether `--compile auto` compiles on `device`."""
    return device.type == "cuda"


def precision_of(dtype: torch.dtype) -> str:
    """The name of `dtype` as `--precision` has it."""
    return next(name for name, each in PRECISIONS.items() if each == dtype)


def name_of(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "Apple GPU"
