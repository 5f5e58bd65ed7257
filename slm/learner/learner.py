"""What happens in one optimizer step.

Legend: B sequences in a micro-batch, T context length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, optim
from torch.nn.utils import clip_grad_norm_
from torch.profiler import record_function

from slm.device import autocast, is_out_of_memory
from slm.learner.workers import Loss, Workers, divided_as, optimizer_state, whole
from slm.model.gpt import GPT

Batch = tuple[Tensor, Tensor]  # inputs and targets, (B, T) each


class Outcome(NamedTuple):
    """What a step computed. Tensors are scalars that stay on the device until someone reads them."""

    loss: Tensor  # mean over the tokens of the step, of all processes, in nats
    gradient_norm: Tensor  # before clipping
    skipped: bool  # the gradient was NaN or infinite, and nothing changed
    pieces: int  # that each micro-batch was computed in


class Learner:
    """A model and its optimizers. Knows no plan, no disk and no clock; between steps it keeps nothing else."""

    def __init__(
        self,
        model: GPT,
        optimizers: Sequence[optim.Optimizer],
        *,
        device: torch.device,
        dtype: torch.dtype,
        grad_clip: float = 0.0,
        compile: str = "off",
        workers: Workers | None = None,
    ):
        """dtype: of matrix products. grad_clip: largest norm of the whole gradient; 0: no limit. compile: auto: on
        CUDA only; on; off."""
        self.model, self.optimizers, self.device, self.dtype = model, optimizers, device, dtype
        self.grad_clip, self.compile, self.workers = grad_clip, compile, workers or Workers()
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.loss: Loss | None = None  # the model's, compiled and averaging over processes; made in the first step

    def step(self, batches: Sequence[Batch], *, rate: float, seed: int, pieces: int = 1) -> Outcome:
        """One optimizer step over `batches`, the micro-batches of this process, with this learning rate.

        seed: of dropout; each process makes another one of it. pieces: compute each micro-batch in so many parts;
        where memory is short their number is doubled, which changes no result.

        Raises MemoryError or RuntimeError where memory is short for a single sequence, or for several processes, which
        are in the middle of an exchange then.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_factor"]
        if self.loss is None:
            self.loss = self._prepared_loss(batches[0])
        while True:
            torch.manual_seed((seed + 1_000_000_007 * self.workers.rank) % 2**63)
            try:
                loss = self._gradients(batches, self.loss, pieces)
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or pieces >= len(batches[0][0]) or self.workers.world > 1:
                    raise
            pieces *= 2
            self._release_memory()  # here, where the error no longer holds the failed attempt's tensors
        with record_function("optimizer"):
            norm, skipped = self._update(loss)
        return Outcome(loss, norm, skipped, pieces)

    def _gradients(self, batches: Sequence[Batch], loss_of: Loss, pieces: int) -> Tensor:
        """Forward and backward over the micro-batches: their mean loss, a scalar on the device."""
        loss_sum = torch.zeros((), device=self.device)
        own_tokens = sum(ids.numel() for ids, _ in batches)
        parts = [part for batch in batches for part in zip(*(t.tensor_split(pieces) for t in batch), strict=True)]
        for number, (ids, targets) in enumerate(parts, 1):
            with self.workers.last_of_step(loss_of, number == len(parts)):
                with record_function("forward and loss"), autocast(self.device, self.dtype):
                    loss, _ = loss_of(ids, targets)
                    loss = loss / own_tokens  # summed over the parts: the mean over all tokens of the step
                with record_function("backward"):
                    self.scaler.scale(loss).backward()
            loss_sum += loss.detach()
        return self.workers.mean(loss_sum)

    def _release_memory(self) -> None:
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _update(self, loss: Tensor) -> tuple[Tensor, bool]:
        """Clip the gradient and let the optimizers step; a NaN or infinite gradient changes nothing.

        Returns the gradient norm, and whether the step was skipped. On a GPU, which this would make wait, only fp16 is
        looked at here; the guard of a run sees the rest.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = whole(clip_grad_norm_(self.model.parameters(), self.grad_clip or math.inf))
        looked_at = self.device.type == "cpu" or self.scaler.is_enabled()
        skipped = looked_at and not bool(norm.isfinite() & loss.isfinite())
        if not skipped:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm, skipped

    def _prepared_loss(self, batch: Batch) -> Loss:
        """The model's loss as steps compute it, with gradients averaged over the processes."""
        with self.workers.barrier():
            loss = self._compiled(batch)
        return self.workers.sharing_gradients(self.model, loss)

    def _compiled(self, batch: Batch) -> Loss:
        """The model's loss, compiled where asked for and possible: forward and backward are tried on `batch`."""
        by_default = self.device.type == "cuda" and self.workers.sharded is None
        if self.compile == "off" or (self.compile == "auto" and not by_default):
            return self.model.loss
        compiled: Callable[..., Any] = torch.compile(self.model.loss)
        try:
            with autocast(self.device, self.dtype):
                compiled(*batch)[0].backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a missing compiler shows itself in many ways
            reason = (str(error).strip().splitlines() or [""])[0][:120]
            print(f"torch.compile does not work here ({type(error).__name__}: {reason}); training goes on without it")
            return self.model.loss
        finally:
            self.model.zero_grad(set_to_none=True)
        return compiled

    def weights(self) -> dict[str, Tensor]:
        """Whole weights, with a row for each token; in the first process alone."""
        weights = self.workers.gather(self.model.state_dict())
        return self.model.widened(weights) if self.workers.rank == 0 else {}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over whole weights, with a row for each token."""
        own = self.model.state_dict()
        narrowed = self.model.narrowed(weights)
        self.model.load_state_dict({name: divided_as(own[name], weight) for name, weight in narrowed.items()})

    def state_dict(self) -> dict[str, Any]:
        """The optimizers' and the scaler's states with whole tensors; in the first process alone."""
        optimizers = [self.workers.gather(optimizer.state_dict()) for optimizer in self.optimizers]
        return {"optimizers": optimizers, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, from whichever number of processes or device."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state(saved, optimizer))
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
