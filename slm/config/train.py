"""The settings of `slm train` and `slm find-lr`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from slm.config.fields import Settings, flag
from slm.config.formats import format_problems
from slm.config.model import PRESETS, ModelConfig
from slm.cores import processes

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Errors = Literal["strict", "replace"]

DATASET = (
    "file, folder or glob of .txt .jsonl .json .csv .parquet; the hub's owner/name; tinystories; stories: built in"
)
TEXT_FIELD = "the field that holds the text of rows; a,b: several joined; a.b: b inside of a; a chat becomes turns"
ERRORS = "bytes that are not in the encoding: stop, or read them as U+FFFD"
ENCODING = "encoding of local files: utf-8, utf-16, cp1252, gb18030 or another that Python knows"
CACHE_DIR = "folder that keeps token files for the next run"
PRECISION = "arithmetic of matrix products; auto: whichever is fast on the device"


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which text, and how it becomes tokens."""

    dataset: str = flag("stories", DATASET)
    val_dataset: str | None = flag(None, "the same for validation; default: the set's own split, else val_fraction")
    val_fraction: float = flag(
        0.05, "share of the text held out for validation: documents chosen by a hash of their text", above=0, below=1
    )
    text_field: str = flag("text", TEXT_FIELD)
    errors: Errors = flag("strict", ERRORS)
    encoding: str = flag("utf-8", ENCODING)
    tokenizer: Literal["gpt2", "bpe"] = flag("gpt2", "GPT-2's, or a byte-level BPE trained on the training text")
    cache_dir: str = flag("~/.cache/slm", CACHE_DIR)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Train a small GPT on a text and keep the best checkpoint."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("dataset",)
    HEADINGS: ClassVar[Mapping[str, str]] = {
        "preset": "defaults",
        "dataset": "text",
        "vocab_size": "model",
        "epochs": "length of the run",
        "batch_size": "learning",
        "precision": "machine",
        "seed": "repeating and watching a run",
        "init_from": "files",
    }
    EXAMPLE: ClassVar[str] = "book.txt --max_minutes 10 --out_dir runs/book"

    preset: str = flag("small", "named defaults that other flags override: tiny, small, gpt2, gpt2-medium")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    epochs: float = flag(1.0, "passes over the training text", above=0)
    max_steps: int | None = flag(None, "optimizer steps, instead of epochs", at_least=1)
    max_minutes: float | None = flag(
        None, "stop after this time, the learning rate falling with it; instead of epochs", above=0
    )
    patience: int | None = flag(None, "stop after this many evaluations without a better validation loss", at_least=1)

    batch_size: int | None = flag(
        None, "sequences in a micro-batch; default, or auto: what learns most in the run's length", at_least=1
    )
    grad_accum: int = flag(1, "micro-batches whose gradients are summed into one optimizer step", at_least=1)
    global_batch_tokens: int | None = flag(
        None,
        "tokens of an optimizer step, however many processes share them; batch_size is then the most at a time",
        at_least=1,
    )
    optimizer: Literal["adamw", "muon"] = flag("muon", "muon: for the blocks' matrices, with AdamW for the rest")
    learning_rate: float | None = flag(
        None, "peak rate; default: 0.004, with adamw 0.001, at width 384, falling as 1/width", above=0
    )
    min_lr: float = flag(0.0, "learning rate at the end of the run", at_least=0)
    schedule: Literal["cosine", "linear", "wsd"] = flag(
        "linear", "decay after warm-up; wsd: constant, then linear over the last fifth"
    )
    warmup_steps: int | None = flag(
        None, "optimizer steps of linear warm-up; default: 5 % of the run, or 20 in a short one", at_least=0
    )
    weight_decay: float = flag(0.1, "decay of matrices; biases and LayerNorms have none", at_least=0)
    beta1: float = flag(0.9, "AdamW's decay of the mean gradient", at_least=0, below=1)
    beta2: float = flag(0.95, "AdamW's decay of the mean squared gradient", at_least=0, below=1)
    grad_clip: float = flag(1.0, "largest norm of the whole gradient; 0: no limit", at_least=0)

    precision: Precision = flag("auto", PRECISION)
    device: Device = flag("auto", "where to train; auto: a GPU where there is one")
    parallel: Literal["ddp", "fsdp"] = flag(
        "ddp", "under torchrun: the whole model in each process, or (fsdp) its weights divided among them"
    )
    compile: Literal["auto", "on", "off"] = flag("auto", "torch.compile; auto: on CUDA only")
    activation_checkpointing: bool = flag(
        False, "keep less for the backward pass and compute it again: less memory, a third more work"
    )
    profile: bool = flag(False, "write trace.json, for chrome://tracing, and show where a step's time goes")
    seed: int = flag(
        0, "determines the initial weights, the order of the text and dropout", at_least=0, at_most=2**63 - 1
    )
    deterministic: bool = flag(False, "the same bits every time on a GPU, too; slower")

    eval_every: int | None = flag(None, "optimizer steps between evaluations; default: 20 in a run", at_least=1)
    eval_batches: int | None = flag(
        None, "batches of validation text in an evaluation; default: as many as take under 5 % of the run", at_least=1
    )
    save_every: float = flag(5.0, "minutes between saves of last.pt, from which --resume continues", above=0)
    max_rollbacks: int = flag(
        3, "returns to the last saved state, each halving the rate, when training breaks down", at_least=0
    )
    init_from: str | None = flag(None, "model to start from: its weights, shape and tokenizer; the text may be another")
    tensorboard: bool = flag(False, "also write the metrics for TensorBoard, in out_dir/tensorboard")
    export: str = flag("onnx", "formats to write the best model in at the end, as in slm export; none: no other")
    out_dir: str = flag(".", "folder for best_model.pt, best_model.onnx, last.pt, metrics.csv and training.png")
    resume: bool = flag(False, "continue the run in out_dir")
    overwrite: bool = flag(False, "replace the run in out_dir")

    @classmethod
    def defaults(cls, given: Mapping[str, object]) -> Mapping[str, object]:
        """Those of the preset."""
        return PRESETS.get(str(given.get("preset")), {})

    @classmethod
    def depend_on_files(cls, given: Mapping[str, object]) -> bool:
        """The run to resume and the model to start from bring settings of their own."""
        return given.get("resume") is True or given.get("init_from") is not None or processes().restartable

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        model, data = self.model, self.data
        if self.preset not in PRESETS:
            yield f"--preset must be one of {', '.join(PRESETS)}, not {self.preset!r}"
        yield from super().problems()
        if data.tokenizer == "gpt2" and model.vocab_size > 50_257 and self.init_from is None:
            yield f"--vocab_size {model.vocab_size} is above GPT-2's 50,257: leave it out, or use --tokenizer bpe"
        if self.learning_rate is not None and self.min_lr > self.learning_rate:
            yield f"--min_lr {self.min_lr} is above --learning_rate {self.learning_rate}"
        if self.global_batch_tokens is not None and self.global_batch_tokens > 0 and model.context_length > 0:
            world = processes().world
            share = world * model.context_length
            if self.global_batch_tokens % share:
                near = max(1, round(self.global_batch_tokens / share)) * share
                among = f"{world} processes x " if world > 1 else ""
                yield (
                    f"--global_batch_tokens {self.global_batch_tokens} is not a multiple of "
                    f"{among}{model.context_length} tokens of context: try {near}"
                )
            if self.grad_accum != 1:
                yield "--global_batch_tokens and --grad_accum exclude each other: the first determines the second"
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
    """Try several peak learning rates in short runs, and plot how they end."""

    HEADINGS: ClassVar[Mapping[str, str]] = {
        **TrainConfig.HEADINGS,
        "epochs": "length of the run that the rate is for, from which the batch size follows",
        "trials": "trials",
    }
    EXAMPLE: ClassVar[str] = "book.txt --out_dir runs/rates"
    MEANINGLESS: ClassVar[frozenset[str]] = frozenset({
        "patience", "min_lr", "parallel", "profile", "deterministic", "eval_every", "eval_batches", "save_every",
        "max_rollbacks", "tensorboard", "export", "resume", "overwrite",
    })  # fmt: skip

    trials: int = flag(7, "rates to try, each twice the one before, the default one in the middle", at_least=1)
    trial_steps: int = flag(100, "optimizer steps of each, warm-up and decay included", at_least=1)
    out_dir: str = flag(".", "folder for learning_rate.png")

    @classmethod
    def depend_on_files(cls, given: Mapping[str, object]) -> bool:
        """The model to start from brings its shape."""
        return given.get("init_from") is not None

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        yield from super().problems()
        if processes().world > 1:
            yield "find-lr runs in one process: start it without torchrun"


@dataclass(frozen=True)
class DoctorConfig(Settings):
    """Time this machine: what it would choose, how fast the default model learns on it, and how long a text takes."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("dataset",)
    HEADINGS: ClassVar[Mapping[str, str]] = {"dataset": "text", "precision": "machine"}
    EXAMPLE: ClassVar[str] = "book.txt"

    data: DataConfig = field(default_factory=DataConfig)
    precision: Precision = flag("auto", PRECISION)
    device: Device = flag("auto", "the device to time; auto: a GPU where there is one")
    json: bool = flag(False, "print JSON, for a report of a problem")
