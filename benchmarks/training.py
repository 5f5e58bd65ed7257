"""How many tokens does a training step see in a second, and how much is learned in a minute, beside others?

The default model on a real text. `speed` times steps of this project, of transformers' GPT2LMHeadModel (`pip install
transformers`) and of nanoGPT (a clone of it, given with --nanogpt) in one process, alternating, medians, in fp32 and in
bf16; then each in a process of its own for its peak memory (Linux only). `learn` trains one of them for some minutes by
its own recipe and measures bits per byte of the validation text on the way. `scaling` times steps of other batches,
contexts, widths and vocabularies and draws them. `plot` draws what `learn` has printed. One JSON line each.

    python benchmarks/training.py speed --train train.txt --nanogpt path/to/nanoGPT
    python benchmarks/training.py learn --train train.txt --valid valid.txt --minutes 10
    python benchmarks/training.py scaling --train train.txt --out scaling.png
    python benchmarks/training.py plot --curves curves.jsonl --out learning.png
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib.util
import itertools
import json
import math
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm.config.model import ModelConfig
from slm.config.train import DataConfig, TrainConfig
from slm.data.batches import TrainingBatches
from slm.data.corpus import Corpus, prepare
from slm.data.encoding import Tokens, encode
from slm.data.sources import open_source
from slm.device import autocast
from slm.evaluation.measure import measure
from slm.run_files import read_rows
from slm.training import picture
from slm.training.cost import flops_per_token
from slm.training.run import Run, assemble

BATCH = 32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# what is timed: name -> optimizer and whether every token of the vocabulary is made to occur in the text
OURS = {
    "slm": ("adamw", False),
    "slm, Muon": ("muon", False),
    "slm, all 50,257 tokens in use": ("adamw", True),
}
PEERS = ("transformers", "nanoGPT")
NANOGPT_BATCH, NANOGPT_RATE, NANOGPT_LOWEST, NANOGPT_WARMUP = 12, 1e-3, 1e-4, 100  # its settings for a laptop's CPU
Step = Callable[[], object]


def corpus_of(train: str, cache: str, vocab_size: int = 50_257) -> Corpus:
    return prepare(DataConfig(dataset=train, cache_dir=cache), vocab_size)


def our_step(
    corpus: Corpus, optimizer: str, dtype: torch.dtype, shape: ModelConfig | None = None, batch: int = BATCH
) -> tuple[Step, Run]:
    """A function that makes one training step as the loop does it."""
    config = TrainConfig(
        model=shape or ModelConfig(), batch_size=batch, optimizer=optimizer, max_steps=1000, precision="fp32",
    )  # fmt: skip
    run = assemble(config, corpus, torch.device("cpu"), dtype)

    def step() -> None:
        batches = [run.batch(number) for number in run.plan.batches_of(run.state.step)]
        run.learner.step(batches, rate=run.plan.rate(run.state), seed=run.plan.seed_of(run.state.step))
        run.state.step += 1

    return step, run


def work_of(run: Run) -> float:
    return flops_per_token(run.learner.model.config, run.learner.model.rows_in_training)


def all_in_use(corpus: Corpus) -> Corpus:
    """The same text with every token of the vocabulary somewhere in it."""
    ids = np.concatenate([corpus.train.ids, np.arange(corpus.tokenizer.vocab_size, dtype=corpus.train.ids.dtype)])
    return dataclasses.replace(corpus, train=Tokens(ids, corpus.train.documents, corpus.train.text_bytes))


def peer_model(
    name: str, nanogpt: str | None, shape: ModelConfig | None = None, device: str = "cpu"
) -> tuple[Any, Any, Callable[[Tensor, Tensor], Tensor]]:
    """A peer's model of this shape, an AdamW, and its mean loss of (ids, targets), each (B, T)."""
    torch.manual_seed(0)
    shape = shape or ModelConfig()
    if name == "nanoGPT":
        spec = importlib.util.spec_from_file_location("nanogpt_model", Path(str(nanogpt)) / "model.py")
        module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        with contextlib.redirect_stdout(sys.stderr):
            model = module.GPT(
                module.GPTConfig(
                    block_size=shape.context_length,
                    vocab_size=50_304,
                    n_layer=shape.n_layer,
                    n_head=shape.n_head,
                    n_embd=shape.n_embd,
                    dropout=0.0,
                    bias=False,
                )
            ).to(device)
            optimizer = model.configure_optimizers(0.1, NANOGPT_RATE, (0.9, 0.99), device)
        return model, optimizer, lambda ids, targets: model(ids, targets)[1]
    import transformers

    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_positions=shape.context_length,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def loss(ids: Tensor, targets: Tensor) -> Tensor:  # it shifts the labels itself
        return model(input_ids=ids, labels=torch.cat([ids[:, :1], targets[:, :-1]], dim=1)).loss

    return model, optimizer, loss


def peer_step(name: str, corpus: Corpus, dtype: torch.dtype, nanogpt: str | None, batch: int = BATCH) -> Step:
    model, optimizer, loss_of = peer_model(name, nanogpt)
    batches = TrainingBatches(corpus.train.ids, batch, ModelConfig().context_length, 0)
    state = {"step": 0}

    def step() -> None:
        ids, targets = (torch.from_numpy(array.copy()) for array in batches(state["step"]))
        with autocast(torch.device("cpu"), dtype):
            loss = loss_of(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state["step"] += 1

    return step


def contender(name: str, corpus: Corpus, dtype: torch.dtype, nanogpt: str | None) -> Step:
    if name in PEERS:
        return peer_step(name, corpus, dtype, nanogpt)
    optimizer, whole = OURS[name]
    return our_step(all_in_use(corpus) if whole else corpus, optimizer, dtype)[0]


def seconds(run: Step) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def gemm_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best of some products of 2,048 x 2,048 matrices."""
    matrix = torch.ones(2048, 2048, dtype=dtype)
    return 2 * 2048**3 / min(seconds(lambda: matrix @ matrix) for _ in range(6))


def machine() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def speed(flags: argparse.Namespace) -> None:
    corpus = corpus_of(flags.train, flags.cache_dir)
    names = [*OURS, *(name for name in PEERS if name != "nanoGPT" or flags.nanogpt)]
    tokens = BATCH * ModelConfig().context_length
    # What a token costs (`slm.training.cost.flops_per_token`): the weights in products six times, and attention.
    work = {name: work_of(our_step(all_in_use(corpus) if whole else corpus, optimizer, torch.float32)[1])
            for name, (optimizer, whole) in OURS.items()}  # fmt: skip
    work |= dict.fromkeys(PEERS, work["slm, all 50,257 tokens in use"])
    figures: dict[str, Any] = {"machine": machine(), "tokens_per_second": {}, "share_of_gemm": {}, "peak_bytes": {}}
    rows = []
    for precision, dtype in DTYPES.items():
        steps = {name: contender(name, corpus, dtype, flags.nanogpt) for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        peaks = []
        for round in range(flags.rounds + 1):
            peaks.append(gemm_peak(dtype))
            for name, step in steps.items():
                taken = seconds(step)
                if round:
                    times[name].append(taken)
        del steps
        gc.collect()
        peak = statistics.median(peaks)
        figures.setdefault("gemm_flops", {})[precision] = peak
        for name in names:
            rate = tokens / statistics.median(times[name])
            command = [sys.executable, __file__, "memory", "--train", flags.train, "--cache_dir", flags.cache_dir]
            command += ["--contender", name, "--precision", precision]
            command += ["--nanogpt", flags.nanogpt] if flags.nanogpt else []
            memory = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            key = f"{name}, {precision}"
            figures["tokens_per_second"][key], figures["peak_bytes"][key] = round_(rate), memory
            figures["share_of_gemm"][key] = round_(rate * work[name] / peak, 3)
            rows.append(f"{key:40} {rate:>8,.0f} {rate * work[name] / peak:>8.0%} {memory / 1e9:>8.2f} GB")
    print(f"{machine()}; batch {BATCH} x {ModelConfig().context_length}, medians of {flags.rounds} rounds")
    print(", ".join(f"{name} products {peak / 1e9:,.0f} GFLOP/s" for name, peak in figures["gemm_flops"].items()))
    print(f"{'':40} {'tokens/s':>8} {'of GEMM':>8} {'memory':>11}")
    print("\n".join(rows))
    print(json.dumps(figures))


def round_(value: float, digits: int = 1) -> float:
    return round(value, digits)


def memory(flags: argparse.Namespace) -> None:
    """Print the peak memory in bytes of this process after three steps."""
    step = contender(flags.contender, corpus_of(flags.train, flags.cache_dir), DTYPES[flags.precision], flags.nanogpt)
    for _ in range(3):
        step()
    print(1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]))


def learn(flags: argparse.Namespace) -> None:
    """Train by the contender's own recipe over so many minutes: the curve of (seconds, bits per byte)."""
    if flags.contender == "nanoGPT":
        curve, facts = learn_nanogpt(flags)
    else:
        curve, facts = learn_ours(flags)
    figures = {"contender": flags.contender, "minutes": flags.minutes, "precision": flags.precision, **facts}
    print(json.dumps({"machine": machine(), **figures, "curve": [(round(s, 1), round(bits, 4)) for s, bits in curve]}))


def learn_ours(flags: argparse.Namespace) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """The documented command, with the validation text given; its clock runs on in evaluations and saves."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "--dataset", flags.train, "--val_dataset", flags.valid]
        command += ["--max_minutes", str(flags.minutes), "--out_dir", folder, "--cache_dir", flags.cache_dir]
        command += ["--export", "none", *flags.more]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(said, file=sys.stderr)
        rows = read_rows(Path(folder))
        facts = torch.load(Path(folder) / "best_model.pt", weights_only=True)["facts"]
    curve = [(row["seconds"] or 0.0, row["val_bits_per_byte"] or math.nan) for row in rows]
    return curve, {
        "flags": flags.more, "steps": facts["step"], "tokens": facts["tokens_seen"],
        "bits_per_byte": round(facts["val"]["bits_per_byte"], 4),
    }  # fmt: skip


def learn_nanogpt(flags: argparse.Namespace) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """nanoGPT's model and optimizer with its settings for a small CPU run; evaluations stop its clock."""
    corpus = corpus_of(flags.train, flags.cache_dir)
    source = open_source(flags.valid, text_field="text", errors="strict", held_out=True)
    valid = encode(source, corpus.tokenizer, flags.cache_dir)
    model, optimizer, loss_of = peer_model("nanoGPT", flags.nanogpt)
    context, device, dtype = ModelConfig().context_length, torch.device("cpu"), DTYPES[flags.precision]
    batches = TrainingBatches(corpus.train.ids, NANOGPT_BATCH, context, 0)

    @torch.no_grad()
    def nats(ids: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
        with autocast(device, dtype):
            mean = loss_of(torch.from_numpy(ids), torch.from_numpy(targets))
        return float(mean) * int((targets >= 0).sum()), 0

    def bits(limit: int | None) -> float:
        measured = measure(nats, context, valid, corpus.tokenizer, batch_size=BATCH, limit=limit and limit * BATCH)
        return measured.bits_per_byte

    limit_seconds, spent, step = 60 * flags.minutes, 0.0, 0
    curve, due = [(0.0, bits(4))], 0.05
    while spent < limit_seconds:
        begun = time.perf_counter()
        total = step * limit_seconds / spent if step >= 5 else 1000.0
        if step < NANOGPT_WARMUP:
            rate = NANOGPT_RATE * (step + 1) / (NANOGPT_WARMUP + 1)
        else:
            done = min(1.0, (step - NANOGPT_WARMUP) / max(1.0, total - NANOGPT_WARMUP))
            rate = NANOGPT_LOWEST + 0.5 * (1 + math.cos(math.pi * done)) * (NANOGPT_RATE - NANOGPT_LOWEST)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, targets = (torch.from_numpy(array.copy()) for array in batches(step))
        with autocast(device, dtype):
            loss = loss_of(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        spent += time.perf_counter() - begun
        if spent / limit_seconds >= due and spent < limit_seconds:
            due += 0.05
            curve.append((spent, bits(4)))
            print(f"{spent:6.0f} s, step {step}: {curve[-1][1]:.4f} bits per byte", file=sys.stderr)
    curve.append((spent, bits(None)))
    return curve, {"steps": step, "tokens": step * NANOGPT_BATCH * context, "bits_per_byte": round(curve[-1][1], 4)}


def scaling(flags: argparse.Namespace) -> None:
    """Tokens a second against batch, context, width and vocabulary, and what the FLOP count would have them be."""
    corpora = {size: corpus_of(flags.train, flags.cache_dir, size) for size in (1_000, 2_500, 5_000, 10_000, 50_257)}
    default, dtype = ModelConfig(), DTYPES[flags.precision]
    cases: dict[str, dict[int, tuple[ModelConfig, int, Corpus]]] = {
        "windows in a batch": {n: (default, n, corpora[50_257]) for n in (1, 2, 4, 8, 16, 32, 64)},
        "context length": {
            n: (dataclasses.replace(default, context_length=n), 4096 // n, corpora[50_257])
            for n in (32, 64, 128, 256, 512, 1024)
        },
        "width": {
            n: (dataclasses.replace(default, n_embd=n), BATCH, corpora[50_257]) for n in (96, 192, 384, 576, 768)
        },
        "vocabulary": {n: (default, BATCH, corpora[n]) for n in corpora},
    }
    figures: dict[str, Any] = {"machine": machine(), "precision": flags.precision}
    for what, of in cases.items():
        for n, (shape, batch, corpus) in of.items():
            step, run = our_step(corpus, "adamw", dtype, shape, batch)
            step()
            taken = statistics.median(seconds(step) for _ in range(flags.rounds))
            rate = batch * shape.context_length / taken
            figures.setdefault(what, []).append((n, round_(rate), round_(work_of(run) / 1e6)))
            print(f"{what} {n}: {rate:,.0f} tokens/s, {rate * work_of(run) / 1e9:,.0f} GFLOP/s", flush=True)
            del step, run
    figure = picture.new_figure(11, 7)
    for number, what in enumerate(cases, 1):
        axes = figure.add_subplot(2, 2, number)
        sizes, rates, work = zip(*figures[what], strict=True)
        middle = len(sizes) // 2
        axes.loglog(sizes, rates, "o-", color=picture.VERMILION, label="measured")
        expected = [rates[middle] * work[middle] / flops for flops in work]
        axes.loglog(sizes, expected, "--", color=picture.BLUE, label="by the FLOP count alone")
        axes.set(xlabel=what, ylabel="tokens/s", xticks=sizes, xticklabels=[f"{size:,}" for size in sizes])
        axes.minorticks_off()
        picture.tidy(axes)
        axes.legend(frameon=False)
    picture.save(Path(flags.out), figure)
    print(json.dumps(figures))


def plot(flags: argparse.Namespace) -> None:
    """Draw curves of bits per byte over minutes, one of each line of a file."""
    figure = picture.new_figure(9, 5)
    axes = figure.add_subplot()
    ours, peers = (itertools.cycle(colours) for colours in (picture.WARM, picture.COOL))
    for line in Path(flags.curves).read_text().splitlines():
        run = json.loads(line)
        minutes, bits = zip(*((at / 60, bits) for at, bits in run["curve"] if bits < 2.2), strict=True)
        is_ours = run["contender"] not in PEERS
        axes.plot(
            minutes, bits, "-" if is_ours else "--", color=next(ours if is_ours else peers), marker=".",
            label=f"{run['contender']}, {run['minutes']:g} minutes: {run['bits_per_byte']:.3f}",
        )  # fmt: skip
    axes.set(xlabel="minutes of training", ylabel="bits per byte of unseen text (lower is better)", xlim=(0, None))
    picture.tidy(axes)
    axes.legend(frameon=False)
    picture.save(Path(flags.out), figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = {"speed": speed, "memory": memory, "learn": learn, "scaling": scaling, "plot": plot}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--train", default="stories", help="the text to train on, as --dataset of train.py")
    parser.add_argument("--valid", help="the text whose bits per byte are measured")
    parser.add_argument("--nanogpt", help="folder of a clone of nanoGPT")
    parser.add_argument("--contender", default="slm", help="slm, nanoGPT; for memory any that speed times")
    parser.add_argument("--precision", choices=DTYPES, default="fp32", help="of a peer in learn, of scaling")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--curves", help="lines that learn has printed")
    parser.add_argument("--out", default="training.png")
    parser.add_argument("--cache_dir", default="~/.cache/slm")
    flags, flags.more = parser.parse_known_args()  # the rest goes to train.py
    commands[flags.command](flags)


if __name__ == "__main__":
    main()
