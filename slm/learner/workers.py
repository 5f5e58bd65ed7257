"""Several processes that train one model (`torchrun`): who they are, what they agree on, and how they share the work.

The engine is PyTorch's: DistributedDataParallel (Li et al., 2020), where each process holds the whole model, or FSDP2
(Zhao et al., 2023), where weights, gradients and averages are divided among them. Either averages the gradients over
the processes; as each divides its loss by its own tokens, and all have equally many, that gives the gradient of the
mean over all of a step's tokens. A run in one process is the case of `Workers()`: nothing here does anything then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from slm.cores import processes, usable_cores
from slm.errors import UserError, first_line
from slm.model.gpt import GPT

T = TypeVar("T")
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

TIMEOUT = timedelta(seconds=60)  # without a word from another process; then the run ends
BEAT = 5.0  # seconds between signs of life of a process that works while the others wait


@dataclass
class Workers:
    """The processes of a run, seen from one of them: the one with number `rank` of `world`."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those on this machine
    local_world: int = 1
    parallel: str = "ddp"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.several = dist.is_initialized()  # there may also be a group of one process
        self._signs = dist.new_group(backend="gloo") if self.several else None  # for the barrier's thread
        self.sharded: Any = None  # the model, where its weights are divided

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` returns, or the UserError it raises, in the first process, for all; others do not call it."""
        if not self.several:
            return make()
        made: list[Any] = [None]
        with self.barrier():
            if self.rank == 0:
                try:
                    made = [make()]
                except UserError as error:
                    made = [error]
        dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
        if isinstance(made[0], UserError):
            raise made[0]
        return made[0]

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the processes, in fp64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, *values: float) -> list[float]:
        """Each value as it is in the process where it is largest."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: tuple[float, ...], by: Any) -> list[float]:
        if not self.several:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, by)
        return [float(value) for value in tensor]

    def mean(self, value: Tensor) -> Tensor:
        """The mean of each element over the processes; stays on the device."""
        if self.several:
            dist.all_reduce(value)
            value /= self.world
        return value

    @contextlib.contextmanager
    def barrier(self) -> Iterator[None]:
        """A barrier at the end of a block, in which some may work for hours while the others wait.

        They exchange signs of life meanwhile, so that a process that is gone is noticed as soon as in training.
        """
        if not self.several:
            yield
            return
        done, errors = threading.Event(), []

        def beat() -> None:
            try:
                all_done = torch.zeros(1)
                while not all_done:
                    all_done.fill_(done.wait(BEAT))
                    dist.all_reduce(all_done, dist.ReduceOp.MIN, group=self._signs)
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:  # an error that is dealt with outside must not keep the others waiting
            done.set()
            thread.join()
        if errors:
            raise errors[0]

    def shard(self, model: GPT, dtype: torch.dtype) -> None:
        """Divide the weights of `model` among the processes, where that is asked for. dtype: of the run's products."""
        if not self.several or self.parallel != "fsdp":
            return
        if dtype == torch.float16:
            raise UserError("--parallel fsdp does not go with --precision fp16: take fp32, or ddp")
        from torch.distributed.device_mesh import init_device_mesh  # a second that a run in one process need not wait
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(self.device.type, (self.world,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        self.sharded = fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "loss")

    def sharing_gradients(self, model: GPT, loss: Loss) -> Loss:
        """`loss`, a function of the weights of `model`, with gradients that become the mean over the processes."""
        if not self.several or self.sharded is not None:
            return loss
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(_Loss(model, loss), device_ids=devices, gradient_as_bucket_view=True)

    def last_of_step(self, loss: Loss, last: bool) -> contextlib.AbstractContextManager[None]:
        """A block for one forward and backward; only in the last one of a step are gradients exchanged."""
        if self.sharded is not None:
            self.sharded.set_requires_gradient_sync(last)
        elif isinstance(loss, DistributedDataParallel) and not last:
            return loss.no_sync()
        return contextlib.nullcontext()

    def gather(self, value: Any) -> Any:
        """`value`, in which there are dicts and lists, with whole tensors in place of divided ones.

        Those come to the CPU, and to the first process alone; the others get empty ones.
        """
        if isinstance(value, dict):
            return {name: self.gather(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.gather(each) for each in value]
        if is_divided(value):
            gathered = value.full_tensor()
            return gathered.cpu() if self.rank == 0 else gathered.new_empty(0)
        return value


class _Loss(nn.Module):
    """A loss as the forward pass of a module, which is what DistributedDataParallel takes; without buffers to send."""

    def __init__(self, model: GPT, loss: Loss):
        super().__init__()
        self.weights, self.loss = nn.ParameterList(model.parameters()), loss

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(ids, targets)


def is_divided(value: object) -> bool:
    """Whether `value` is a tensor of which each process has a part (a DTensor)."""
    return hasattr(value, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """`tensor`, gathered where it is divided among the processes."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def divided_as(like: Any, tensor: Tensor) -> Tensor:
    """`tensor`, which is whole and the same in all processes, divided among them as `like` is."""
    if not is_divided(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def optimizer_state(kept: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A state_dict of whole tensors, `kept`, divided as the parameters of `optimizer` are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {
            name: divided_as(parameters[number], value) if isinstance(value, Tensor) and value.dim() else value
            for name, value in of_one.items()
        }
        for number, of_one in kept["state"].items()
    }
    own = optimizer.state_dict()["param_groups"]  # with what another version of PyTorch does not keep
    groups = [{**mine, **group} for mine, group in zip(own, kept["param_groups"], strict=True)]
    return {"state": state, "param_groups": groups}


def _meeting_point(rank: int, world: int) -> Any:
    """A part of torchrun's store that is new to all: the rest keeps addresses of processes that a restart has ended.

        rank 0, which chose a name N          rank r, which chose a name A
                                       <---   asks/r = A
        answer/A = N                   --->   waits for answer/A
                                       <---   N/r = "here"
        has seen N/r of every r               uses what stands under N

    What `asks/r` holds may be left from a process that has ended: its answer is read by nobody, and rank 0 looks again.
    """
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"asks/{rank}", name)
        chosen = store.get(f"answer/{name}").decode()  # waits for it
        store.set(f"{chosen}/{rank}", "here")
        return PrefixStore(chosen, store)
    missing, deadline = set(range(1, world)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", name)
            if store.check([f"{name}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise UserError(f"process {min(missing)} of {world} has not come: look at what it said")
        time.sleep(0.05)
    return PrefixStore(name, store)


@contextlib.contextmanager
def _ending_with_parent() -> Iterator[None]:
    """A block in which the end of torchrun, even by SIGKILL, is a SIGTERM to this process: a run is saved and ends."""
    done, parent = threading.Event(), os.getppid()

    def watch() -> None:
        while not done.wait(BEAT):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextlib.contextmanager
def joined(device: torch.device, parallel: str) -> Iterator[Workers]:
    """The processes that torchrun has started, joined until the block ends; without torchrun, this one alone.

    Raises UserError where one of the others is gone.
    """
    this = processes()
    if this.world == 1:
        yield Workers(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", this.local_rank)
        torch.cuda.set_device(device)
    elif os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's choice for machines of all sizes
        torch.set_num_threads(max(1, usable_cores() // this.local_world))
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_meeting_point(this.rank, this.world), rank=this.rank, world_size=this.world, timeout=TIMEOUT,
        )  # fmt: skip
        with _ending_with_parent():
            yield Workers(this.rank, this.world, this.local_rank, this.local_world, parallel, device)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = first_line(error).split("] ")[-1]
        raise UserError(
            f"another process of the run is gone or cannot be reached ({reason}): what it said itself is the cause; "
            "what was saved last can be resumed"
        ) from error
    dist.destroy_process_group()
