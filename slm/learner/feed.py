"""Batches on the device, where the next step finds them without waiting."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from slm.data.batches import TrainingBatches


class Feed:
    """`TrainingBatches` as tensors on a device.

    On a GPU the tokens lie in its memory where they take at most a tenth of it, and windows are gathered there; else
    batches come from pinned memory. Either way nothing waits for the GPU, which has steps queued meanwhile.
    """

    def __init__(self, batches: TrainingBatches, device: torch.device, room: int | None = None):
        """room: bytes of the device's memory that tokens may take; default: a tenth on CUDA, elsewhere none."""
        self.batches, self.device = batches, device
        if room is None:
            room = torch.cuda.get_device_properties(device).total_memory // 10 if device.type == "cuda" else 0
        self.tokens: Tensor | None = None  # (N,) int16 or int32, the bits of uint16 or uint32
        if batches.ids.nbytes <= room:
            kind = {2: np.int16, 4: np.int32}[batches.ids.itemsize]
            self.tokens = torch.from_numpy(np.array(batches.ids).view(kind)).to(device)
            self.bits = 0xFFFF if kind == np.int16 else 0xFFFFFFFF
            self.offsets = torch.arange(batches.context_length + 1, device=device)

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of micro-batch `number`, each (B, T) int64."""
        with record_function("batch"):
            return self._batch(number)

    def _batch(self, number: int) -> tuple[Tensor, Tensor]:
        if self.tokens is None:
            ids, targets = self.batches(number)
            return self._sent(ids), self._sent(targets)
        starts = self._sent(self.batches.starts(number))
        windows = self.tokens[starts[:, None] + self.offsets].long() & self.bits  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]

    def _sent(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor.to(self.device)
        )
