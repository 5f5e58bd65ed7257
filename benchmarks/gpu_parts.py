"""The parts of benchmarks/gpu.py. Each prints its rows, a JSON line each, as soon as it has them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.training import all_in_use, corpus_of, peer_model, work_of
from slm.config.model import ModelConfig
from slm.config.train import TrainConfig
from slm.data.batches import TrainingBatches
from slm.data.corpus import Corpus
from slm.device import autocast, peak_flops, pick_device, pick_precision
from slm.inference.torch_engine import TorchEngine
from slm.learner.feed import Feed
from slm.model import loss
from slm.model.gpt import GPT
from slm.run_files import read_rows
from slm.training.run import Run, assemble


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is: for a card, or so small that a CPU gets through."""

    shape: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    windows: int = 512  # of 128 tokens: 64 k
    batches: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    rounds: int = 5
    steps: int = 6  # of a round
    learn_minutes: float = 3.0
    generated: int = 64
    texts: tuple[int, ...] = (1, 256)
    compiled: tuple[str, ...] = ("compacted", "full", "peers", "head")  # what torch.compile is measured for


TOY = Size(
    ModelConfig(context_length=64, n_layer=2, n_head=2, n_embd=64), windows=4, batches=(2, 4), rounds=2, steps=1,
    learn_minutes=0.15, generated=16, texts=(1, 8), compiled=("compacted",),
)  # fmt: skip


class Bench:
    """The device, the sizes and the text of a part, and its rows, which are printed as soon as they are known."""

    def __init__(self, flags: Namespace):
        self.device = pick_device(flags.device)
        self.dtype = pick_precision("fp32" if self.device.type == "cpu" else "auto", self.device)
        self.size = TOY if self.device.type == "cpu" else Size()
        self.flags = flags
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    def corpus(self, full: bool = False) -> Corpus:
        found = corpus_of(self.flags.train, self.flags.cache_dir)
        return all_in_use(found) if full else found

    def say(self, name: str, **figures: Any) -> None:
        print(json.dumps({"row": name, **figures}), flush=True)

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[None]:
        """A block that measures a row: an error in it is the row."""
        try:
            yield
        except Exception as error:
            self.say(name, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def seconds(self, action: Callable[[], object], times: int = 1) -> float:
        """How long one of `times` takes."""
        self.wait()
        begun = time.perf_counter()
        for _ in range(times):
            action()
        self.wait()
        return (time.perf_counter() - begun) / times

    def alternate(self, actions: dict[str, Callable[[], object]], times: int) -> dict[str, float]:
        """The median of what each takes, in turns; the first turn does not count."""
        taken: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(self.size.rounds + 1):
            for name, action in actions.items():
                taken[name].append(self.seconds(action, times))
        return {name: statistics.median(each[1:]) for name, each in taken.items()}

    def peak_bytes(self, action: Callable[[], object]) -> int | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        self.seconds(action)
        return torch.cuda.max_memory_allocated()

    def mfu(self, speed: float, work: float) -> float | None:
        peak = peak_flops(self.device)
        return speed * work / peak if peak else None

    def our_step(self, full: bool, windows: int, compile: bool) -> tuple[Callable[[], object], Run]:
        """A training step as the loop makes it."""
        torch.compiler.reset()  # else the next shape is compiled for all shapes
        config = TrainConfig(
            model=self.size.shape, batch_size=windows, max_steps=1000, compile="on" if compile else "off"
        )
        run = assemble(config, self.corpus(full), self.device, self.dtype)

        def step() -> None:
            batches = [run.batch(number) for number in run.plan.batches_of(run.state.step)]
            outcome = run.learner.step(batches, rate=1e-3, seed=0, pieces=run.state.pieces)
            run.state.step, run.state.pieces = run.state.step + 1, outcome.pieces

        return step, run

    def peer_step(self, name: str, windows: int) -> Callable[[], object]:
        shape = self.size.shape
        model, optimizer, loss_of = peer_model(name, self.flags.nanogpt, shape, self.device.type)
        feed = Feed(TrainingBatches(self.corpus(full=True).train.ids, windows, shape.context_length, 0), self.device)
        compiled = torch.compile(loss_of) if "peers" in self.size.compiled else loss_of
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        number = iter(range(10**9))

        def step() -> None:
            ids, targets = (each.contiguous() for each in feed(next(number)))
            with autocast(self.device, self.dtype):
                loss = compiled(ids, targets)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        return step


def machine(bench: Bench) -> None:
    """What the device does at its best: products of n x n matrices, and copies."""
    n = 512 if bench.device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=bench.dtype) for _ in range(2))
    bench.seconds(lambda: a @ b, 3)
    taken = bench.seconds(lambda: a @ b, 10)
    bench.say(f"{n} x {n} product, {bench.dtype}", seconds=taken, note=f"{2 * n**3 / taken / 1e12:.1f} TFLOP/s")
    source = torch.empty(n * n * 8, device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    taken = bench.seconds(lambda: target.copy_(source), 10)
    bench.say("copy in memory", seconds=taken, note=f"{2 * source.nbytes / taken / 1e9:,.0f} GB/s")


def training(bench: Bench) -> None:
    """The default model at compacted and full vocabulary, compiled and not."""
    windows, T = bench.size.windows, bench.size.shape.context_length
    for vocabulary in ("compacted", "full"):
        for compile in (True, False):
            if compile and vocabulary not in bench.size.compiled:
                continue
            name = f"{vocabulary} vocabulary, {'compiled' if compile else 'eager'}"
            with bench.row(name):
                begun = time.perf_counter()
                step, run = bench.our_step(vocabulary == "full", windows, compile)
                bench.seconds(step)
                first = time.perf_counter() - begun
                bench.seconds(step, 2)
                found = statistics.median(bench.seconds(step, bench.size.steps) for _ in range(bench.size.rounds))
                speed = windows * T / found
                used = "; not compiled after all" if compile and not run.learner.model.compiled_block else ""
                bench.say(
                    name, tokens_per_second=speed, mfu=bench.mfu(speed, work_of(run)), bytes=bench.peak_bytes(step),
                    first_step=first, note=f"{windows} x {T} tokens, {run.learner.model.rows_in_training:,} rows{used}",
                )  # fmt: skip
                del step, run


def peers(bench: Bench) -> None:
    """The same at full vocabulary beside others, in turns; a peer whose step does not fit gets half the batch."""
    T, steps, windows, work = bench.size.shape.context_length, {}, {}, 0.0
    for name in ("slm", "transformers", "nanoGPT"):
        if (name == "nanoGPT" and not bench.flags.nanogpt) or (name != "slm" and not _has("transformers", name)):
            bench.say(name, note="not there")
            continue
        with bench.row(name):
            windows[name] = bench.size.windows
            while name not in steps:
                try:
                    if name == "slm":
                        step, run = bench.our_step(True, windows[name], "full" in bench.size.compiled)
                        work = work_of(run)
                    else:
                        step = bench.peer_step(name, windows[name])
                    bench.seconds(step, 3)
                    steps[name] = step
                except torch.OutOfMemoryError:
                    if windows[name] == 1:
                        raise
                    windows[name] //= 2
                    torch.compiler.reset()
                torch.cuda.empty_cache()
    for name, taken in bench.alternate(steps, bench.size.steps).items():
        speed = windows[name] * T / taken
        how = "compiled" if ("full" if name == "slm" else "peers") in bench.size.compiled else "eager"
        bench.say(
            name, tokens_per_second=speed, mfu=bench.mfu(speed, work), bytes=bench.peak_bytes(steps[name]),
            note=f"{windows[name]} x {T} tokens, {how}, in turns",
        )  # fmt: skip


def _has(*packages: str) -> bool:
    return packages[-1] == "nanoGPT" or importlib.util.find_spec(packages[0]) is not None


def head(bench: Bench) -> None:
    """Output layer and loss, forward and backward, in all the ways there are."""
    N, C, V = bench.size.windows * bench.size.shape.context_length, bench.size.shape.n_embd, 50_257
    hidden = torch.randn(N, C, device=bench.device, requires_grad=True)
    weights = {rows: torch.nn.Parameter(torch.randn(rows, C, device=bench.device) * 0.02) for rows in (V, V + 47)}
    targets = torch.randint(V, (N,), device=bench.device)
    kind, kernel = bench.dtype, loss.cuda_kernel

    def plain(x: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(x, w), t, reduction="sum")

    def of_torch(x: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        how = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(x.to(kind), w.to(kind), t, reduction="sum", options=how)

    def ours(x: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return loss.linear_cross_entropy(x, w, t)[0]

    def without_kernel(x: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with mock.patch.object(loss, "cuda_kernel", return_value=None):
            return ours(x, w, t)

    ways: dict[str, tuple[Callable[..., torch.Tensor], int]] = {"ours": (ours, V)}
    if bench.device.type == "cuda" and kernel():
        ways["ours, without its kernel"] = (without_kernel, V)
    if "head" in bench.size.compiled:
        ways["F.cross_entropy, compiled"] = (torch.compile(plain), V)
        ways[f"F.cross_entropy, compiled, {V + 47:,} rows"] = (torch.compile(plain), V + 47)
    ways["F.cross_entropy"] = (plain, V)
    if hasattr(F, "linear_cross_entropy"):
        ways["F.linear_cross_entropy, chunked"] = (of_torch, V)
    if bench.device.type == "cuda" and _has("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        ways["Liger"] = (lambda x, w, t: liger(w.to(kind), x.to(kind), t), V)
    else:
        bench.say("Liger", note="not there")

    def both(way: Callable[..., torch.Tensor], rows: int) -> float:
        with autocast(bench.device, kind):
            nats = way(hidden, weights[rows], targets)
        nats.backward()
        hidden.grad = weights[rows].grad = None
        return nats.detach()

    working = {}
    for name, (way, rows) in ways.items():
        with bench.row(name):
            mean = float(both(way, rows)) / N
            bench.seconds(lambda way=way, rows=rows: both(way, rows), 2)
            working[name] = (lambda way=way, rows=rows: both(way, rows), mean)
    for name, taken in bench.alternate({name: action for name, (action, _) in working.items()}, 3).items():
        action, mean = working[name]
        bench.say(name, seconds=taken, bytes=bench.peak_bytes(action), note=f"{N:,} tokens, mean loss {mean:.4f}")


def batches(bench: Bench) -> None:
    """Speed by the sequences of a micro-batch, at compacted vocabulary, compiled where that is done."""
    T, compile = bench.size.shape.context_length, "compacted" in bench.size.compiled and bench.device.type != "cpu"
    for windows in bench.size.batches:
        name = f"{windows} sequences, {'compiled' if compile else 'eager'}"
        with bench.row(name):
            step, run = bench.our_step(False, windows, compile)
            bench.seconds(step, 3)
            if run.state.pieces > 1:
                raise MemoryError(f"in {run.state.pieces} pieces only")
            speed = windows * T / bench.seconds(step, bench.size.steps)
            bench.say(name, tokens_per_second=speed, mfu=bench.mfu(speed, work_of(run)), bytes=bench.peak_bytes(step))


def learning(bench: Bench) -> None:
    """The documented command, by the clock: validation loss after a third of it, and at its end."""
    from slm.cli import main

    limit, shape = bench.size.learn_minutes, bench.size.shape
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        sys.argv = ["train.py"]
        given = {
            "dataset": bench.flags.train, "max_minutes": limit, "out_dir": folder, "cache_dir": bench.flags.cache_dir,
            "export": "none", "device": bench.device.type, "context_length": shape.context_length,
            "n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd,
        }  # fmt: skip
        code = main(["train", *(f"--{name}={value}" for name, value in given.items())])
        rows = read_rows(Path(folder))
    if code or not rows:
        raise RuntimeError(f"train.py ended with {code}")
    near = min(rows, key=lambda row: abs((row["seconds"] or 0) - 20 * limit))
    for row in (near, rows[-1]):
        bench.say(
            f"after {row['seconds']:.0f} s of {60 * limit:.0f}", val_loss=row["val_loss"],
            tokens_per_second=row["tokens_per_second"] or None, note=f"step {row['step']:,.0f}",
        )  # fmt: skip


class StaticDecoding:
    """Greedy decoding in which every step is the same kernels on the same memory, so that a CUDA graph can hold it.

    Each step attends over the whole context with a mask, where the engine looks at what is there alone.
    """

    PROMPT = 16

    def __init__(self, model: GPT, texts: int):
        self.model, self.cache = model, model.new_cache(texts)
        self.ids = torch.ones(texts, 1, dtype=torch.int64, device=self.cache.ends.device)
        self.restart()

    def restart(self) -> None:
        self.cache.longest = self.cache.keys.size(3) - 1
        self.cache._even = False
        self.cache.ends.fill_(self.PROMPT)

    @torch.no_grad()
    def step(self) -> None:
        self.cache.longest = self.cache.keys.size(3) - 1
        hidden = self.model.hidden(self.ids, self.cache)[:, -1]
        self.ids.copy_(F.linear(hidden, self.model.token_embedding.weight).argmax(-1, keepdim=True))


def generation(bench: Bench) -> None:
    """Tokens a second of greedy writing, by the engine that generate.py uses and with every step the same."""
    torch.manual_seed(0)
    model = GPT(bench.size.shape).to(bench.device).eval()
    count = bench.size.generated
    for texts in bench.size.texts:
        with bench.row(f"engine, {texts} texts"):
            engine, prompt = TorchEngine(model), np.ones(StaticDecoding.PROMPT, dtype=np.int64)

            def write(engine: TorchEngine = engine, texts: int = texts, prompt: np.ndarray = prompt) -> None:
                engine.keep([])
                logits = list(engine.prefill([prompt] * texts))
                for _ in range(count):
                    logits = engine.decode(np.stack(logits).argmax(-1))

            write()
            bench.say(f"engine, {texts} texts", tokens_per_second=texts * count / bench.seconds(write))
        for dtype in dict.fromkeys([torch.float32, bench.dtype]):
            static = StaticDecoding(model.to(dtype), texts)
            name = f"static step, {texts} texts, {dtype}".replace("torch.", "")
            for graph in (False, True) if bench.device.type == "cuda" else (False,):
                with bench.row(name + ", CUDA graph" * graph):
                    step = _captured(static) if graph else static.step
                    static.restart()
                    bench.seconds(step, 3)
                    taken = bench.seconds(step, min(count, bench.size.shape.context_length - StaticDecoding.PROMPT - 8))
                    bench.say(name + ", CUDA graph" * graph, tokens_per_second=texts / taken)
        model.float()


def _captured(static: StaticDecoding) -> Callable[[], object]:
    """The step as a CUDA graph, after some on a stream of their own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            static.step()
    torch.cuda.current_stream().wait_stream(stream)
    static.restart()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static.step()
    return graph.replay


PARTS: dict[str, tuple[Callable[[Bench], None], int, int]] = {  # in the order of importance: least and most seconds
    "machine": (machine, 20, 60), "training": (training, 60, 180), "peers": (peers, 60, 180), "head": (head, 40, 120),
    "learning": (learning, 215, 260), "generation": (generation, 20, 60), "batches": (batches, 40, 150),
}  # fmt: skip
