"""What `slm train` and `slm find-lr` can be told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from slm.config.fields import flag
from slm.config.formats import format_problems
from slm.config.model import ModelConfig
from slm.cores import processes


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes tokens."""

    dataset: str = flag(
        "stories",
        "file, folder or glob of .txt .jsonl .json .csv .parquet; a hub data set; tinystories; stories: built in",
    )
    val_dataset: str | None = flag(None, "the same for validation; default: the set's own split, else val_fraction")
    val_fraction: float = flag(0.05, "share of the documents kept for validation, chosen by a hash of their text")
    text_field: str = flag("text", "the field that holds the text in .jsonl, .json, .csv, .parquet and hub data sets")
    errors: Literal["strict", "replace"] = flag("strict", "bytes that are not UTF-8: stop, or read them as U+FFFD")
    tokenizer: Literal["gpt2", "bpe"] = flag("gpt2", "GPT-2's, or a byte-level BPE trained on the training text")
    cache_dir: str = flag("~/.cache/slm", "where token files are kept for the next run")


@dataclass(frozen=True)
class TrainConfig:
    """Train a small GPT on a text and keep the best checkpoint."""

    preset: str = flag("small", "named defaults that other flags override: tiny, small, gpt2, gpt2-medium")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    epochs: float = flag(1.0, "passes over the training text")
    max_steps: int | None = flag(None, "optimizer steps, instead of epochs")
    max_minutes: float | None = flag(None, "stop after this time, the schedule running down with it; instead of epochs")
    patience: int | None = flag(None, "stop after this many evaluations without a better validation loss")

    batch_size: int | None = flag(
        None, "windows of context_length tokens in a batch; default, or auto: what learns most in the run's length"
    )
    grad_accum: int = flag(1, "batches whose gradients are summed into one optimizer step")
    global_batch_tokens: int | None = flag(
        None, "tokens of an optimizer step, however many processes share them; batch_size is then the most at a time"
    )
    optimizer: Literal["adamw", "muon"] = flag("muon", "muon: for the blocks' matrices, with AdamW for the rest")
    learning_rate: float | None = flag(
        None, "peak rate; default: 0.004, with adamw 0.001, at width 384, falling as 1/width"
    )
    min_lr: float = flag(0.0, "learning rate at the end of the run")
    schedule: Literal["cosine", "linear", "wsd"] = flag(
        "linear", "decay after warm-up; wsd: constant, then linear over the last fifth"
    )
    warmup_steps: int | None = flag(
        None, "optimizer steps of linear warm-up; default: 5 % of the run, or 20 in a short one"
    )
    weight_decay: float = flag(0.1, "decay of matrices; biases and LayerNorms have none")
    beta1: float = flag(0.9, "AdamW's decay of the mean gradient")
    beta2: float = flag(0.95, "AdamW's decay of the mean squared gradient")
    grad_clip: float = flag(1.0, "largest norm of the whole gradient; 0: no limit")

    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto", "arithmetic of matrix products; auto: what is fast on the device"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = flag("auto", "where to train; auto: a GPU where there is one")
    parallel: Literal["ddp", "fsdp"] = flag(
        "ddp", "under torchrun: the whole model in each process, or (fsdp) its weights divided among them"
    )
    compile: Literal["auto", "on", "off"] = flag("auto", "torch.compile; auto: on CUDA only")
    activation_checkpointing: bool = flag(
        False, "keep less for the backward pass and compute it again: less memory, a third more work"
    )
    profile: bool = flag(False, "write trace.json, for chrome://tracing, and show where a step's time goes")
    seed: int = flag(0, "initial weights, order of the text and dropout follow from it")
    deterministic: bool = flag(False, "on a GPU too, the same bits every time; slower")

    eval_every: int | None = flag(None, "optimizer steps between evaluations; default: 20 in a run")
    eval_batches: int | None = flag(
        None, "batches of each split in an evaluation; default: what costs under 5 % of the run"
    )
    save_every: float = flag(5.0, "minutes between saves of last.pt, from which --resume continues")
    max_rollbacks: int = flag(3, "returns to the last saved state, with half the rate, when the loss breaks down")
    init_from: str | None = flag(None, "model to go on from: its weights, shape and tokenizer; the text may be another")
    tensorboard: bool = flag(False, "write what metrics.csv holds for TensorBoard, too, in out_dir/tensorboard")
    export: str = flag("onnx", "formats to write the best model in at the end, as in slm export; none: no other")
    out_dir: str = flag(".", "folder for best_model.pt, best_model.onnx, last.pt, metrics.csv and training.png")
    resume: bool = flag(False, "continue the run in out_dir")
    overwrite: bool = flag(False, "replace the run in out_dir")

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        model, data = self.model, self.data
        whole = {
            "context_length": model.context_length, "n_layer": model.n_layer, "n_head": model.n_head,
            "n_embd": model.n_embd, "batch_size": self.batch_size, "grad_accum": self.grad_accum,
            "max_steps": self.max_steps, "patience": self.patience, "eval_every": self.eval_every,
            "eval_batches": self.eval_batches, "global_batch_tokens": self.global_batch_tokens,
        }  # fmt: skip
        for name, value in whole.items():
            if value is not None and value < 1:
                yield f"--{name} must be at least 1, not {value}"
        if model.n_head > 0 and model.n_embd % model.n_head:
            near = max(model.n_head, round(model.n_embd / model.n_head) * model.n_head)
            yield f"--n_embd {model.n_embd} is not divisible by --n_head {model.n_head}: try --n_embd {near}"
        if model.vocab_size < 257:
            yield f"--vocab_size must be at least 257 (256 bytes and the end of text), not {model.vocab_size}"
        if data.tokenizer == "gpt2" and model.vocab_size > 50_257 and self.init_from is None:
            yield f"--vocab_size {model.vocab_size} is above GPT-2's 50,257: leave it out, or use --tokenizer bpe"
        if not 0 <= model.dropout < 1:
            yield f"--dropout must be from 0 to under 1, not {model.dropout}"
        if not 0 < data.val_fraction < 1:
            yield f"--val_fraction must be between 0 and 1, not {data.val_fraction}"
        positive = {
            "epochs": self.epochs, "max_minutes": self.max_minutes, "learning_rate": self.learning_rate,
            "save_every": self.save_every,
        }  # fmt: skip
        for name, amount in positive.items():
            if amount is not None and not 0 < amount < math.inf:
                yield f"--{name} must be above 0, not {amount}"
        from_zero = {
            "min_lr": self.min_lr, "warmup_steps": self.warmup_steps, "weight_decay": self.weight_decay,
            "grad_clip": self.grad_clip, "max_rollbacks": self.max_rollbacks,
        }  # fmt: skip
        for name, amount in from_zero.items():
            if amount is not None and not 0 <= amount < math.inf:
                yield f"--{name} must be 0 or more, not {amount}"
        for name, share in {"beta1": self.beta1, "beta2": self.beta2}.items():
            if not 0 <= share < 1:
                yield f"--{name} must be from 0 to under 1, not {share}"
        if self.learning_rate is not None and self.min_lr > self.learning_rate:
            yield f"--min_lr {self.min_lr} is above --learning_rate {self.learning_rate}"
        if not 0 <= self.seed < 2**63:
            yield f"--seed must be from 0 to 2^63 - 1, not {self.seed}"
        world = processes().world
        if self.global_batch_tokens is not None and self.global_batch_tokens > 0 and model.context_length > 0:
            share = world * model.context_length
            if self.global_batch_tokens % share:
                near = max(1, round(self.global_batch_tokens / share)) * share
                among = f"{world} processes x " * (world > 1)
                yield (
                    f"--global_batch_tokens {self.global_batch_tokens} is no multiple of "
                    f"{among}{model.context_length} tokens of context: try {near}"
                )
            if self.grad_accum != 1:
                yield "--global_batch_tokens and --grad_accum exclude each other: the one gives the other"
        if self.max_steps is not None and self.max_minutes is not None:
            yield "--max_steps and --max_minutes exclude each other: give one"
        if self.resume and self.overwrite:
            yield "--resume and --overwrite exclude each other: continue the run, or replace it"
        if self.init_from is not None and data.tokenizer != "gpt2":
            yield "--init_from and --tokenizer exclude each other: the model brings its tokenizer"
        if self.export != "none":
            yield from format_problems("export", self.export)


@dataclass(frozen=True)
class FindRateConfig(TrainConfig):
    """Try several peak learning rates in short runs, and draw how they end."""

    trials: int = flag(7, "rates to try, each twice the one before, the default one in the middle")
    trial_steps: int = flag(100, "optimizer steps of each, warm-up and decay included")
    out_dir: str = flag(".", "folder for learning_rate.png")

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        yield from super().problems()
        for name, value in {"trials": self.trials, "trial_steps": self.trial_steps}.items():
            if value < 1:
                yield f"--{name} must be at least 1, not {value}"
        if processes().world > 1:
            yield "find-lr runs in one process: start it without torchrun"
        if self.resume:
            yield "--resume is for training: leave it out"
