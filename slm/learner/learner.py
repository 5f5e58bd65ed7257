"""What happens in one optimizer step.

Legend: B sequences in a micro-batch, T context length.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, optim
from torch.nn.utils import clip_grad_norm_
from torch.profiler import record_function

from slm.device import autocast, compiles_by_default, is_out_of_memory
from slm.errors import first_line
from slm.learner.optim import check_state
from slm.learner.workers import Loss, Workers, divided_as, optimizer_state, whole
from slm.model.gpt import GPT, through

Batch = tuple[Tensor, Tensor]  # inputs and targets, (B, T) each


class Outcome(NamedTuple):
    """What a step computed. Tensors are scalars that stay on the device until someone reads them."""

    loss: Tensor  # mean over the tokens of the step, of all processes, in nats
    accuracy: Tensor  # share of these tokens that were the likeliest
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
        self.is_whole = True  # False while a step changes the weights, and where it broke off doing so

    def step(self, batches: Sequence[Batch], *, rate: float, seed: int, pieces: int = 1) -> Outcome:
        """One optimizer step over `batches`, the micro-batches of this process, with this learning rate.

        seed: of dropout; each process derives its own from it. pieces: compute each micro-batch in this many parts;
        where memory is short their number is doubled, which changes no result.

        Raises MemoryError or RuntimeError where memory is short for a single sequence, or for several processes, which
        are in the middle of an exchange then.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_factor"]
        while True:
            torch.manual_seed((seed + 1_000_000_007 * self.workers.rank) % 2**63)
            try:
                if self.loss is None:
                    ids, targets = (each.tensor_split(pieces)[0] for each in batches[0])
                    self.loss = self._prepared_loss((ids, targets))
                    continue  # with the seed set again
                loss, accuracy = self._gradients(batches, self.loss, pieces)
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or pieces >= len(batches[0][0]) or self.workers.world > 1:
                    raise
            pieces *= 2
            self._release_memory()  # here, where the error no longer holds the failed attempt's tensors
        with record_function("optimizer"):
            norm, skipped = self._update(loss)
        return Outcome(loss, accuracy, norm, skipped, pieces)

    def _gradients(self, batches: Sequence[Batch], loss_of: Loss, pieces: int) -> tuple[Tensor, Tensor]:
        """Forward and backward over the micro-batches: their mean loss and accuracy, scalars on the device."""
        sums = torch.zeros(2, device=self.device)  # of the loss, which is a mean, and of right guesses
        own_tokens = sum(ids.numel() for ids, _ in batches)
        parts = [part for batch in batches for part in zip(*(t.tensor_split(pieces) for t in batch), strict=True)]
        for number, (ids, targets) in enumerate(parts, 1):
            with self.workers.last_of_step(loss_of, number == len(parts)):
                with record_function("forward and loss"), autocast(self.device, self.dtype):
                    loss, correct = loss_of(ids, targets)
                    loss = loss / own_tokens  # summed over the parts: the mean over all tokens of the step
                with record_function("backward"):
                    self.scaler.scale(loss).backward()
            sums[0] += loss.detach()
            sums[1] += correct
        loss, right = self.workers.mean(sums)
        return loss, right / own_tokens

    def _release_memory(self) -> None:
        self.model.zero_grad(set_to_none=True)
        gc.collect()
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
        self.is_whole = False
        if not skipped:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        self.is_whole = True
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm, skipped

    def _prepared_loss(self, batch: Batch) -> Loss:
        """The model's loss, with blocks compiled where that is possible, and gradients averaged over the processes."""
        with self.workers.barrier():
            self._compile_blocks(batch)
        return self.workers.sharing_gradients(self.model, self.model.loss)

    def _compile_blocks(self, batch: Batch) -> None:
        """Compile the model's blocks where asked for and possible: the gradient of `batch` must be the plain one's."""
        by_default = compiles_by_default(self.device) and self.workers.sharded is None
        if self.compile == "off" or (self.compile == "auto" and not by_default):
            return
        expected = self._gradient_norm(batch, pieces=min(8, len(batch[0])))  # it needs more memory
        self.model.compiled_block = torch.compile(through, dynamic=False)
        try:
            found = self._gradient_norm(batch)
        except Exception as error:  # a missing compiler shows itself in many ways
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {first_line(error)[:120]}"
        else:
            tolerance = 0.5 if self.model.config.dropout else 0.1  # dropout draws anew
            if abs(found - expected) <= tolerance * expected:
                return
            reason = f"its gradient has the norm {found:.4g} instead of {expected:.4g}"
        print(f"torch.compile does not work here ({reason}); training goes on without it")
        self.model.compiled_block = None

    def _gradient_norm(self, batch: Batch, pieces: int = 1) -> float:
        """The norm of the gradient of `batch`, computed in so many pieces; none is kept."""
        size = math.sqrt(batch[0].numel())  # neither the mean nor the sum could be too small or too large for fp16
        try:
            for part in zip(*(each.tensor_split(pieces) for each in batch), strict=True):
                with autocast(self.device, self.dtype):
                    loss = self.model.loss(*part)[0] / size
                loss.backward()
            return float(whole(clip_grad_norm_(self.model.parameters(), math.inf)))
        finally:
            self.model.zero_grad(set_to_none=True)

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

    def check_state_dict(self, state: Mapping[str, Any], *, begun: bool) -> None:
        """Raises ValueError where `state_dict` cannot have given that; begun: after the first step that counted."""
        optimizers, scaler = state["optimizers"], state["scaler"]
        if not isinstance(optimizers, list) or len(optimizers) != len(self.optimizers):
            raise ValueError(f"there are not {len(self.optimizers)} optimizers")
        for optimizer, saved in zip(self.optimizers, optimizers, strict=True):
            check_state(saved, optimizer, begun=begun)
        names = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
        numbers = isinstance(scaler, dict) and all(type(value) in (int, float) for value in scaler.values())
        if not numbers or (scaler and scaler.keys() != names):
            raise ValueError("the scaler of fp16 has something else than its numbers")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, from whichever number of processes or device."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state(saved, optimizer))
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
