"""Every setting of the project: one dataclass field is one flag, its help, its default and its checkpoint entry.

`flag(default, "help")` declares a field; `slm.cli` turns the fields of a command's dataclass into flags of the same
name. Nested dataclasses are flattened, so that `ModelConfig.n_layer` is simply `--n_layer`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from slm.cores import processes, usable_cores

T = TypeVar("T")


def flag(default: T, help: str) -> T:
    """A dataclass field with the help text that the command line shows."""
    return field(default=default, metadata={"help": help})


# --format NAME -> the module of slm.export that writes it, and how its file's or folder's name ends
EXPORT_FORMATS: Mapping[str, tuple[str, str]] = {
    "onnx": ("onnx", ".onnx"),
    "onnx-int8": ("onnx", ".int8.onnx"),
    "onnx-int4": ("onnx", ".int4.onnx"),
    "torchscript": ("torchscript", ".torchscript.pt"),
    "torch_export": ("torch_export", ".pt2"),
    "huggingface": ("huggingface", "-huggingface"),
    "gguf": ("gguf", ".gguf"),
    "gguf-q8_0": ("gguf", ".q8_0.gguf"),
    "ctranslate2": ("ctranslate2", "-ctranslate2"),
    "ctranslate2-int8": ("ctranslate2", "-ctranslate2-int8"),
    "web": ("web", "-web"),
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT-2-style network (Radford et al., 2019)."""

    vocab_size: int = flag(
        50_257, "number of tokens; below 50,257 keeps GPT-2's most common in the text; bpe: how many to train"
    )
    context_length: int = flag(128, "tokens the model can look back on")
    n_layer: int = flag(6, "transformer blocks")
    n_head: int = flag(6, "attention heads; must divide n_embd")
    n_embd: int = flag(384, "width: length of a token's vector")
    dropout: float = flag(0.0, "share of activations zeroed in training; try 0.1 for many epochs of a small text")
    bias: bool = flag(True, "biases in linear layers and LayerNorms")
    attention: Literal["flash", "math"] = flag(
        "flash", "flash: torch's fused kernel where there is one; math: plain matrix products"
    )


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


@dataclass(frozen=True)
class GenerateConfig:
    """Let a trained model continue a text."""

    model_path: str = flag("best_model.pt", "model to load: .pt, .onnx, a run's folder, or one for transformers")
    prompt: str = flag("", "text to continue; empty: start a new story")
    prompt_file: str | None = flag(None, "file with a prompt on each line, instead of --prompt")
    interactive: bool = flag(False, "ask for prompts, one after another")
    max_length: int = flag(200, "tokens to add at most; a story that ends stops before")
    num_samples: int = flag(1, "continuations to write of each prompt")
    temperature: float = flag(0.8, "0: always the likeliest token; 1: as the model believes; above: bolder")
    top_k: int = flag(0, "choose among the k likeliest tokens; 0: all")
    top_p: float = flag(0.95, "choose among the likeliest tokens that together have this probability; 1: all")
    min_p: float = flag(0.0, "choose among tokens at least this share as likely as the likeliest; 0: all")
    repetition_penalty: float = flag(1.0, "above 1: tokens that were there already become less likely")
    stop: tuple[str, ...] = flag((), "end before this text; may be given several times; default: at the story's end")
    seed: int | None = flag(None, "the same seed writes the same text; default: a new one each time")
    logprobs: bool = flag(False, "print JSON: each token with its probability and the five likeliest")
    device: Literal["auto", "cpu", "cuda", "mps"] = flag("auto", "where to run; auto: a GPU where there is one")
    threads: int | None = flag(None, "CPU cores to use; default: as many as are fast for what is asked")

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        for name, value in {
            "max_length": self.max_length,
            "num_samples": self.num_samples,
            "threads": self.threads,
        }.items():
            if value is not None and value < 1:
                yield f"--{name} must be at least 1, not {value}"
        if not 0 <= self.temperature < math.inf:
            yield f"--temperature must be 0 or more, not {self.temperature}"
        if self.top_k < 0:
            yield f"--top_k must be 0 or more, not {self.top_k}"
        if not 0 < self.top_p <= 1:
            yield f"--top_p must be above 0 and at most 1, not {self.top_p}"
        if not 0 <= self.min_p <= 1:
            yield f"--min_p must be from 0 to 1, not {self.min_p}"
        if not 0.01 <= self.repetition_penalty <= 100:
            yield f"--repetition_penalty must be from 0.01 to 100, not {self.repetition_penalty}"
        if self.threads is not None and self.threads > usable_cores():
            yield f"--threads {self.threads} is more than the {usable_cores()} cores there are"
        if "" in self.stop:
            yield "--stop must not be empty"
        if self.seed is not None and self.seed < 0:
            yield f"--seed must be 0 or more, not {self.seed}"
        if self.temperature == 0 and self.num_samples > 1:
            yield f"--temperature 0 always writes the same text: {self.num_samples} samples need a higher one"
        given = {
            "prompt": self.prompt != "", "prompt_file": self.prompt_file is not None, "interactive": self.interactive,
        }  # fmt: skip
        if sum(given.values()) > 1:
            yield f"{' and '.join(f'--{name}' for name, is_given in given.items() if is_given)} exclude each other"
        if self.interactive and (self.logprobs or self.num_samples > 1):
            yield f"--interactive shows one growing text: leave out --{'logprobs' if self.logprobs else 'num_samples'}"


@dataclass(frozen=True)
class ServeConfig:
    """Serve a trained model over HTTP, as OpenAI's completions API does, with a page to write on."""

    model_path: str = flag("best_model.pt", GenerateConfig.__dataclass_fields__["model_path"].metadata["help"])
    host: str = flag("127.0.0.1", "address to listen on; 127.0.0.1 is reached from this machine only")
    port: int = flag(8000, "port to listen on; 0: any that is free")
    api_key: str | None = flag(None, "key that requests must bring, as Authorization: Bearer KEY; default: none")
    cors: tuple[str, ...] = flag(
        (), "web origin whose pages may ask, as https://example.org; may be given several times; default: none"
    )
    max_batch: int = flag(32, "texts written together")
    max_queue: int = flag(128, "requests that may wait for a place among them")
    max_streams: int = flag(256, "requests that may be streamed to at once")
    max_choices: int = flag(32, "texts that a request may ask for: prompts times n")
    max_tokens: int = flag(2048, "tokens that a request may ask for in each text")
    max_request_bytes: int = flag(1_000_000, "length of a request's body")
    timeout: float = flag(120.0, "seconds that a request may take, the time it waits included")
    run_dir: str | None = flag(None, "a run's folder, or one with several, to watch on the page; default: none")
    device: Literal["auto", "cpu", "cuda", "mps"] = flag("auto", "where to run; auto: a GPU where there is one")
    threads: int | None = flag(None, "CPU cores to use; default: all")

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        for name in ("max_batch", "max_streams", "max_choices", "max_tokens", "max_request_bytes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"--{name} must be at least 1, not {value}"
        if self.max_queue < 0:
            yield f"--max_queue must be 0 or more, not {self.max_queue}"
        if not 0 < self.timeout < math.inf:
            yield f"--timeout must be above 0, not {self.timeout}"
        if not 0 <= self.port < 65_536:
            yield f"--port must be from 0 to 65,535, not {self.port}"
        if self.threads is not None and self.threads > usable_cores():
            yield f"--threads {self.threads} is more than the {usable_cores()} cores there are"
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            yield "--api_key must be of printable ASCII characters"
        for origin in self.cors:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                yield f"--cors {origin!r} is no origin: write it as https://example.org, without a path, or *"


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained model on a text."""

    model_path: str = flag("best_model.pt", "model to load: .pt, .onnx, a run's folder, or one for transformers")
    dataset: str = flag("stories", DataConfig.__dataclass_fields__["dataset"].metadata["help"])
    text: str | None = flag(None, "this text itself, instead of a dataset")
    text_field: str = flag("text", DataConfig.__dataclass_fields__["text_field"].metadata["help"])
    errors: Literal["strict", "replace"] = flag("strict", DataConfig.__dataclass_fields__["errors"].metadata["help"])
    cache_dir: str = flag("~/.cache/slm", "where token files are kept for the next run")
    batch_size: int = flag(32, "windows of the model's context length at a time")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto", "arithmetic of matrix products; auto: what is fast on the device"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = flag("auto", "where to run; auto: a GPU where there is one")

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        if self.batch_size < 1:
            yield f"--batch_size must be at least 1, not {self.batch_size}"
        if self.text == "":
            yield "--text must not be empty"
        if self.text is not None and self.dataset != "stories":
            yield "--text and --dataset exclude each other"


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model in the formats of other programs."""

    model_path: str = flag("best_model.pt", "checkpoint to export")
    format: str = flag("onnx", f"one or several, with commas between them: {', '.join(EXPORT_FORMATS)}")
    out_dir: str | None = flag(None, "folder to write to; default: that of model_path")

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        yield from format_problems("format", self.format)


@dataclass(frozen=True)
class WatchConfig:
    """Show runs as they learn, in a browser: curves, and the story at each evaluation."""

    run_dir: str = flag(".", "folder of a run, or one with several runs below it")
    host: str = flag("127.0.0.1", "address to listen on; 127.0.0.1 is reached from this machine only")
    port: int = flag(8001, "port to listen on; 0: any that is free")

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        if not 0 <= self.port < 65_536:
            yield f"--port must be from 0 to 65,535, not {self.port}"


@dataclass(frozen=True)
class ImportConfig:
    """Make a checkpoint of a GPT-2 in the layout of the transformers library."""

    from_: str = flag("", "folder with config.json, weights, tokenizer, or a hub name like gpt2; no default: give one")
    out_dir: str = flag(".", "folder for best_model.pt")
    overwrite: bool = flag(False, "replace the best_model.pt in out_dir")

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        if not self.from_:
            yield "--from is missing: give a folder with a config.json, or the name of a model on the hub"


def format_list(formats: str) -> list[str]:
    """The names in `formats`, which have commas between them, each once."""
    return list(dict.fromkeys(name.strip() for name in formats.split(",") if name.strip()))


def format_problems(flag_name: str, formats: str) -> Iterator[str]:
    """One line for each of `formats` that is no export format, or where there is none."""
    if not format_list(formats):
        yield f"--{flag_name} names no format: there are {', '.join(EXPORT_FORMATS)}"
    for name in format_list(formats):
        if name not in EXPORT_FORMATS:
            near = difflib.get_close_matches(name, EXPORT_FORMATS, n=1)
            mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(EXPORT_FORMATS)}"
            yield f"--{flag_name} {name!r} is no export format: {mend}"


PRESETS: Mapping[str, Mapping[str, object]] = {
    # For the quick start: learns the built-in stories in minutes on a CPU (docs/experiments.md says why this shape).
    "tiny": {
        "vocab_size": 2048,
        "context_length": 256,
        "n_layer": 2,
        "n_head": 8,
        "n_embd": 256,
        "batch_size": 16,
        "learning_rate": 0.005,
    },
    "small": {},
    "gpt2": {"context_length": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"context_length": 1024, "n_layer": 24, "n_head": 16, "n_embd": 1024},
}


def command(name: str) -> str:
    """How the user calls the command `name`: as they called this one, by its script, as a module or installed."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"python -m slm {name}"
    return f"python {name}.py" if called.suffix == ".py" else f"slm {name}"


def flags(config_class: type) -> dict[str, tuple[Any, str, object]]:
    """The flags of a config class, nested ones flattened: name -> (type, help, default); `from_` is --from."""
    found: dict[str, tuple[Any, str, object]] = {}
    hints = typing.get_type_hints(config_class)
    for entry in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[entry.name]):
            found |= flags(hints[entry.name])
        else:
            found[entry.name.removesuffix("_")] = (hints[entry.name], entry.metadata["help"], entry.default)
    return found


def settings(config: object) -> dict[str, Any]:
    """The values of a config, nested ones flattened: name -> value."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, entry.name)
        found |= settings(value) if dataclasses.is_dataclass(value) else {entry.name.removesuffix("_"): value}
    return found


def build(config_class: type[T], values: Mapping[str, object]) -> T:
    """An instance from flat `values`; what is missing keeps its default."""
    hints = typing.get_type_hints(config_class)
    arguments: dict[str, object] = {}
    for entry in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[entry.name]):
            arguments[entry.name] = build(hints[entry.name], values)
        elif entry.name.removesuffix("_") in values:
            arguments[entry.name] = values[entry.name.removesuffix("_")]
    return config_class(**arguments)


def parse(kind: Any, text: str) -> object:
    """`text` as a value of the type `kind`: int, float, bool, str, Literal[...], one of these with None or in a tuple.

    Raises ValueError where it is none; `expected` says what would be.
    """
    kind, may_be_none = _without_none(kind)
    if may_be_none and text.lower() in ("none", "auto"):
        return None
    if typing.get_origin(kind) is tuple:
        return parse(typing.get_args(kind)[0], text)
    if kind is bool:
        return ("false", "true").index(text.lower()) == 1
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)[typing.get_args(kind).index(text)]
    return kind(text)


def expected(kind: Any) -> str:
    """What a value of the type `kind` looks like, in short."""
    kind, _ = _without_none(kind)
    if typing.get_origin(kind) is tuple:
        return expected(typing.get_args(kind)[0])
    if typing.get_origin(kind) is Literal:
        return "|".join(typing.get_args(kind))
    return {int: "INTEGER", float: "NUMBER", bool: "true|false", str: "TEXT"}[kind]


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
        return kind, True
    return kind, False
