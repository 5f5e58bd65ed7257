"""A run in words: what it is about to do, and how fast it was."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.config.train import TrainConfig
from slm.data.corpus import Corpus
from slm.device import name_of, peak_flops, precision_of
from slm.evaluation.measure import bits_in_words
from slm.learner.learner import Learner
from slm.training.cost import flops_per_token, in_training, memory_estimate
from slm.training.plan import Plan
from slm.training.state import State
from slm.training.terminal import LABEL, cut, dim, indent, width

LEARNED_BY_HEART = 1.01  # times the best validation loss: more than how a part of the text differs from the whole


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
    passes = f"{plan.steps / plan.steps_per_epoch:.3g}"
    length = f"{plan.steps:,} steps, {passes} {'pass' if passes == '1' else 'passes'} over the text"
    if config.max_minutes:
        length = f"{config.max_minutes:g} minutes"
    precision = precision_of(learner.dtype)
    in_use = f", of which the text uses {used:,}" if used < shape.vocab_size else ""
    memory = memory_estimate(config, shape, rows, plan.batch_size, learner.device, learner.dtype)
    weights, _ = in_training(shape, shape.vocab_size)
    world = workers.world
    several = f"{world} processes ({config.parallel}), each: " if world > 1 else ""
    share = "" if corpus.held_out is None else f" ({100 * corpus.held_out:.1f} % held out)"
    lines = [
        "text       " + corpus.description.replace("; ", "\n           "),
        f"tokens     {len(corpus.train):,} to train on, {len(corpus.val):,} to validate{share}; "
        f"{corpus.train.text_bytes / len(corpus.train):.2f} bytes each",
        f"tokenizer  {corpus.tokenizer.name}, vocabulary of {shape.vocab_size:,}{in_use}",
        f"model      {weights:,} parameters: {shape.n_layer} layers, {shape.n_head} heads, "
        f"width {shape.n_embd}, context {shape.context_length}",
        f"run        {length}; {plan.tokens_per_step:,} tokens a step, {plan.steps_per_epoch:,.1f} steps a pass",
        f"device     {several}{name_of(learner.device)}, {precision}; about {memory / 1e9:.1f} GB of memory",
        f"files      {', '.join(files)} in {out_dir.resolve()}",
    ]
    if state.step:
        lines.append(f"resuming   after step {state.step:,}, {duration(state.seconds)} into the run")
    if corpus.caution:
        lines.insert(2, f"caution    {corpus.caution}")
    return "\n".join(lines)


def speed(learner: Learner, rows: Sequence[Mapping[str, float]]) -> str:
    """Tokens a second over the run's steps; on a GPU also how much of what it can do at most that is."""
    speeds = [row["tokens_per_second"] for row in rows if row["tokens_per_second"]]
    rate = statistics.median(speeds) if speeds else 0.0
    said = f"{rate:,.0f} tokens/s"
    if learner.device.type == "cpu":
        return said
    used = rate * flops_per_token(learner.model.config, learner.model.rows_in_training)
    peak = peak_flops(learner.device)
    share = f", {used / peak / learner.workers.world:.0%} of the device's peak (MFU)" if peak else ""
    return f"{said}, {used / 1e12:.3g} TFLOP/s{share}"


def evaluated(plan: Plan, rows: Sequence[Mapping[str, float]], sample: Mapping[str, Any], error: float = 0.0) -> str:
    """The last of `rows` in a line, and under it what the model writes now. error: standard error of its bits per byte,
    0 where the whole text was measured."""
    measured = [row["val_bits_per_byte"] for row in rows]
    now = measured[-1]
    line = f"{_place(plan, rows[-1])}validation {bits_in_words(now, error)}"
    if len(measured) == 1:
        line += "; lower is better"
    elif math.isfinite(now):
        change = f"{'up' if now > measured[-2] else 'down'} {abs(now - measured[-2]):.4f}"
        line += f", {'unchanged' if change.endswith(' 0.0000') else change}"
    if now > min(measured):
        line += f" (lowest {min(measured):.4f})"
    text = f"{sample.get('prompt', '')}{sample.get('text', '')}"
    written = cut(text, width() - len(indent()))
    return f"{line}\n{dim(indent() + written)}" if written else line


def continuations(plan: Plan, samples: Sequence[Mapping[str, Any]]) -> str:
    """How the same opening was continued at the start, in the middle and at the end of a run; "" where it was not."""
    samples = [sample for sample in samples if sample.get("text")]
    if len(samples) < 2:
        return ""
    last = len(samples) - 1
    opening = cut(samples[last]["prompt"], width() - LABEL)
    lines = [f'\n"{opening}" went on:']
    for number in sorted({0, (last + 1) // 2, last}):
        label = _place(plan, samples[number])
        lines.append(label + dim(cut(samples[number]["text"], width() - len(label))))
    return "\n".join(lines) + "\n"


def advice(plan: Plan, rows: Sequence[Mapping[str, float]], config: TrainConfig) -> str:
    """A line about the length of another run, where this one went on long after its best model; else ""."""
    best, last = min(rows, key=lambda row: row["val_loss"]), rows[-1]
    if last["val_loss"] < LEARNED_BY_HEART * best["val_loss"] or best["step"] > 0.8 * last["step"]:
        return ""
    if config.max_minutes:
        length = f"--max_minutes {best['seconds'] / 60:.2g}"
    elif config.max_steps:
        length = f"--max_steps {best['step']}"
    else:
        length = f"--epochs {best['step'] / plan.steps_per_epoch:.2g}"
    return (
        f"advice     validation was best after {best['epoch']:.2g} of {last['epoch']:.2g} passes; since then the text "
        "has been learned by heart. A run that ends there, its learning rate falling to 0 on the way, takes less time "
        f"and is better: {length}. So is more text\n"
    )


def _place(plan: Plan, at: Mapping[str, Any]) -> str:
    """Where a run is, as the label of a line: its time where that is limited, else its step."""
    place = duration(at["seconds"]) if plan.time_limit else f"step {at['step']:,}"
    return f"{place:<{LABEL - 1}} "


def duration(seconds: float) -> str:
    """`seconds` for people: 45 s, 2 min 42 s, 12 min, 3 h 05 min, 5 days."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes / (24 * 60):,.0f} days"
