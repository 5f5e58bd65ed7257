"""What a run will take, before it begins: its batch size, its memory, its work, and all of it in words.

Legend: B windows in a batch, T context length.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from slm.config.model import ModelConfig
from slm.config.train import TrainConfig
from slm.device import flops, peak_flops, total_memory
from slm.errors import UserError
from slm.model.loss import CHUNK_ELEMENTS

if TYPE_CHECKING:
    from slm.learner.workers import Workers
    from slm.training.trainer import Run

TOKENS_PER_STEP = 1536  # in a run over up to a million tokens; docs/experiments.md
PYTORCH_BYTES = 4e8  # of a process that has done nothing yet


def in_training(shape: ModelConfig, rows: int) -> tuple[int, int]:
    """How many weights there are where the embedding has so many rows, and how many of them are in matrix products."""
    C, biases = shape.n_embd, shape.bias
    matrices = 12 * shape.n_layer * C * C + rows * C
    vectors = (shape.n_layer * (2 + 11 * biases) + 1 + biases) * C
    return matrices + shape.context_length * C + vectors, matrices


def flops_per_token(shape: ModelConfig, rows: int) -> float:
    """Of forward and backward: 6 for each weight in a product, and attention's own (Chowdhery et al., 2022)."""
    _, in_products = in_training(shape, rows)
    return 6 * in_products + 12 * shape.n_layer * shape.n_embd * shape.context_length


def memory_estimate(config: TrainConfig, shape: ModelConfig, rows: int, batch_size: int, dtype: torch.dtype) -> float:
    """Bytes at the peak: weights, gradients, averages; the head's gradient and logits; activations; PyTorch."""
    tokens = batch_size * shape.context_length
    weights = 16 * in_training(shape, rows)[0] + 8 * rows * shape.n_embd
    logits = min(CHUNK_ELEMENTS, tokens * rows) * (4 if dtype == torch.float32 else 6)
    layers_kept = 1 if config.activation_checkpointing else shape.n_layer
    activations = tokens * shape.n_embd * 4 * (18 * layers_kept + shape.n_layer + 4)
    return weights + logits + activations + PYTORCH_BYTES


def pick_batch_size(
    config: TrainConfig,
    shape: ModelConfig,
    rows: int,
    text_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    workers: Workers,
) -> int:
    """Windows in a batch of one process: the more tokens the run will see, the larger, by their root.

    docs/experiments.md has the figures.
    """
    tokens = config.epochs * text_tokens
    if config.max_minutes:
        speed = workers.world * 0.5 * flops(device, dtype) / flops_per_token(shape, rows)
        tokens = 60 * config.max_minutes * speed
    if config.max_steps:
        tokens = (config.max_steps * TOKENS_PER_STEP) ** 2 / 1e6  # so that they are the steps times the batch
    fewest = workers.world << 15 if device.type == "cuda" else TOKENS_PER_STEP  # a GPU is not filled by less
    in_a_step = config.global_batch_tokens or max(TOKENS_PER_STEP * math.sqrt(tokens / 1e6), fewest)
    wanted = in_a_step / (shape.context_length * config.grad_accum * workers.world)
    sizes = sorted([2**n for n in range(12)] + [3 * 2**n for n in range(11)])  # 1 2 3 4 6 8 12 16 ...
    room = 0.8 * total_memory(device) / (workers.local_world if device.type == "cpu" else 1)
    fitting = [size for size in sizes if memory_estimate(config, shape, rows, size, dtype) < room] or [1]
    return min(fitting, key=lambda size: abs(math.log(size / wanted)))


def divide_step(windows: int, batch_size: int, world: int) -> tuple[int, int]:
    """A process's share of a step's windows: how many in a batch, at most `batch_size`, and in how many batches.

    Raises UserError where the processes cannot have equally many.
    """
    own, rest = divmod(windows, world)
    if rest:
        near = max(n for n in range(1, min(world, windows) + 1) if windows % n == 0)
        raise UserError(f"{world} processes cannot share the {windows} windows of a step equally: start {near}")
    size = max(n for n in range(1, min(batch_size, own) + 1) if own % n == 0)
    return size, own // size


def describe(run: Run) -> str:
    """What the run is about to do."""
    config, corpus, shape = run.config, run.corpus, run.shape
    length = f"{run.planned_steps:,} steps, {run.planned_steps / run.steps_per_epoch:.3g} passes over the text"
    if config.max_minutes:
        length = f"{config.max_minutes:g} minutes"
    place = {
        "cpu": lambda: f"CPU, {torch.get_num_threads()} threads",
        "cuda": lambda: torch.cuda.get_device_name(run.device),
        "mps": lambda: "Apple GPU",
    }[run.device.type]()
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[run.dtype]
    in_use = f", of which the text uses {run.used:,}" if run.used < shape.vocab_size else ""
    share = "" if corpus.held_out is None else f" ({100 * corpus.held_out:.1f} % held out)"
    memory = memory_estimate(config, shape, run.rows, run.batch_size, run.dtype)
    weights, _ = in_training(shape, shape.vocab_size)
    world = run.workers.world
    several = f"{world} processes ({config.parallel}), each: " if world > 1 else ""
    lines = [
        f"text       {corpus.description}",
        f"tokens     {len(corpus.train):,} to train on, {len(corpus.val):,} to validate{share}; "
        f"{corpus.train.text_bytes / len(corpus.train):.2f} bytes each",
        f"tokenizer  {corpus.tokenizer.name}, vocabulary of {shape.vocab_size:,}{in_use}",
        f"model      {weights:,} parameters: {shape.n_layer} layers, {shape.n_head} heads, "
        f"width {shape.n_embd}, context {shape.context_length}",
        f"run        {length}; {run.tokens_per_step:,} tokens a step, {run.steps_per_epoch:,.1f} steps a pass",
        f"device     {several}{place}, {precision}; about {memory / 1e9:.1f} GB of memory",
        f"files      {', '.join(run.files())} in {run.out_dir.resolve()}",
    ]
    if run.state.step:
        lines.append(f"resuming   after step {run.state.step:,}, {duration(run.state.seconds)} into the run")
    return "\n".join(lines)


def speed(run: Run, rows: Sequence[Mapping[str, float]]) -> str:
    """Tokens a second over the run's steps, and how much of what the device can do at most that is."""
    speeds = [row["tokens_per_second"] for row in rows if row["tokens_per_second"]]
    rate = statistics.median(speeds) if speeds else 0.0
    used, peak = rate * flops_per_token(run.shape, run.rows), peak_flops(run.device)
    share = (
        f"{used / peak / run.workers.world:.0%} of the device's peak (MFU)" if peak else "MFU unknown on this device"
    )
    return f"{rate:,.0f} tokens/s, {used / 1e12:.3g} TFLOP/s, {share}"


def duration(seconds: float) -> str:
    """`seconds` for people: 45 s, 2 min 42 s, 12 min, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
