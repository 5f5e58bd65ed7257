"""What the commands that use a model can be told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from slm.config.fields import flag
from slm.config.formats import EXPORT_FORMATS, format_problems
from slm.config.train import DataConfig
from slm.cores import usable_cores


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
