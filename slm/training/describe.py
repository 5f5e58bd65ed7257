"""A run in words: what it is about to do, and how fast it was."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from slm.config.train import TrainConfig
from slm.data.corpus import Corpus
from slm.device import peak_flops
from slm.learner.learner import Learner
from slm.training.cost import flops_per_token, in_training, memory_estimate
from slm.training.plan import Plan
from slm.training.state import State


def describe(
    plan: Plan,
    state: State,
    *,
    config: TrainConfig,
    corpus: Corpus,
    learner: Learner,
    out_dir: Path,
    files: Sequence[str],
) -> str:
    """What the run is about to do. files: names of what it will leave in `out_dir`."""
    shape, rows, workers = learner.model.config, learner.model.rows_in_training, learner.workers
    used = int(corpus.train.in_use(shape.vocab_size).sum())
    length = f"{plan.steps:,} steps, {plan.steps / plan.steps_per_epoch:.3g} passes over the text"
    if config.max_minutes:
        length = f"{config.max_minutes:g} minutes"
    place = {
        "cpu": lambda: f"CPU, {torch.get_num_threads()} threads",
        "cuda": lambda: torch.cuda.get_device_name(learner.device),
        "mps": lambda: "Apple GPU",
    }[learner.device.type]()
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[learner.dtype]
    in_use = f", of which the text uses {used:,}" if used < shape.vocab_size else ""
    memory = memory_estimate(config, shape, rows, plan.batch_size, learner.dtype)
    weights, _ = in_training(shape, shape.vocab_size)
    world = workers.world
    several = f"{world} processes ({config.parallel}), each: " if world > 1 else ""
    share = "" if corpus.held_out is None else f" ({100 * corpus.held_out:.1f} % held out)"
    lines = [
        f"text       {corpus.description}",
        f"tokens     {len(corpus.train):,} to train on, {len(corpus.val):,} to validate{share}; "
        f"{corpus.train.text_bytes / len(corpus.train):.2f} bytes each",
        f"tokenizer  {corpus.tokenizer.name}, vocabulary of {shape.vocab_size:,}{in_use}",
        f"model      {weights:,} parameters: {shape.n_layer} layers, {shape.n_head} heads, "
        f"width {shape.n_embd}, context {shape.context_length}",
        f"run        {length}; {plan.tokens_per_step:,} tokens a step, {plan.steps_per_epoch:,.1f} steps a pass",
        f"device     {several}{place}, {precision}; about {memory / 1e9:.1f} GB of memory",
        f"files      {', '.join(files)} in {out_dir.resolve()}",
    ]
    if state.step:
        lines.append(f"resuming   after step {state.step:,}, {duration(state.seconds)} into the run")
    if corpus.caution:
        lines.insert(2, f"caution    {corpus.caution}")
    return "\n".join(lines)


def speed(learner: Learner, rows: Sequence[Mapping[str, float]]) -> str:
    """Tokens a second over the run's steps, and how much of what the device can do at most that is."""
    speeds = [row["tokens_per_second"] for row in rows if row["tokens_per_second"]]
    rate = statistics.median(speeds) if speeds else 0.0
    used, peak = (
        rate * flops_per_token(learner.model.config, learner.model.rows_in_training),
        peak_flops(learner.device),
    )
    share = "MFU unknown on this device"
    if peak:
        share = f"{used / peak / learner.workers.world:.0%} of the device's peak (MFU)"
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
