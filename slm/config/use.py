"""The settings of the commands that use a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from slm.config.fields import Settings, flag
from slm.config.formats import EXPORT_FORMATS, format_problems
from slm.config.train import CACHE_DIR, DATASET, ENCODING, ERRORS, PRECISION, TEXT_FIELD, Device, Errors, Precision
from slm.cores import usable_cores

MODEL_PATH = "model to load: .pt, .onnx, a run's folder, or one for transformers"
DEVICE = "where to run; auto: a GPU where there is one"
HOST = "address to listen on; 127.0.0.1 is reached from this machine only"
ALLOWED_HOSTS = (
    "host name to answer to besides --host and localhost, as a proxy sends it, or *; may be given several times; "
    "default: none, and on an open address all"
)


@dataclass(frozen=True)
class GenerateConfig(Settings):
    """Let a trained model continue a text."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model_path", "prompt")
    EXAMPLE: ClassVar[str] = 'runs/book "Once upon a time" --temperature 0.7'
    HEADINGS: ClassVar[Mapping[str, str]] = {
        "model_path": "text",
        "max_length": "how it is written",
        "logprobs": "output and machine",
    }

    model_path: str = flag("best_model.pt", MODEL_PATH)
    prompt: str = flag("", "text to continue; empty: start a new story")
    prompt_file: str | None = flag(None, "file with a prompt on each line, instead of --prompt")
    interactive: bool = flag(False, "ask for prompts, one after another")
    max_length: int = flag(200, "tokens to add at most; a story that ends stops before", at_least=1)
    num_samples: int = flag(1, "continuations to write of each prompt", at_least=1)
    temperature: float = flag(0.8, "0: always the likeliest token; 1: as the model believes; above: bolder", at_least=0)
    top_k: int = flag(0, "choose among the k likeliest tokens; 0: all", at_least=0)
    top_p: float = flag(
        0.95, "choose among the likeliest tokens that together have this probability; 1: all", above=0, at_most=1
    )
    min_p: float = flag(
        0.0, "choose among tokens at least this share as likely as the likeliest; 0: all", at_least=0, at_most=1
    )
    repetition_penalty: float = flag(
        1.0, "above 1: tokens that were there already become less likely", at_least=0.01, at_most=100
    )
    frequency_penalty: float = flag(
        0.0, "taken from a token's logit for each time that it was written", at_least=-2, at_most=2
    )
    presence_penalty: float = flag(0.0, "taken from the logits of tokens that were written", at_least=-2, at_most=2)
    stop: tuple[str, ...] = flag((), "end before this text; may be given several times; default: at the story's end")
    seed: int | None = flag(None, "the same seed writes the same text; default: a new one each time", at_least=0)
    logprobs: bool = flag(False, "print JSON: each token with its probability and the five likeliest")
    device: Device = flag("auto", DEVICE)
    threads: int | None = flag(None, "CPU cores to use; default: as many as are fast for this task", at_least=1)

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        yield from super().problems()
        yield from _too_many_threads(self.threads)
        if "" in self.stop:
            yield "--stop must not be empty"
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
class ServeConfig(Settings):
    """Serve a trained model over HTTP, as OpenAI's completions API does, with a page to write on."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model_path",)
    EXAMPLE: ClassVar[str] = "runs/book --port 8000"
    HEADINGS: ClassVar[Mapping[str, str]] = {
        "model_path": "model",
        "host": "who may ask",
        "max_batch": "limits",
        "run_dir": "page and machine",
    }

    model_path: str = flag("best_model.pt", MODEL_PATH)
    host: str = flag("127.0.0.1", HOST)
    port: int = flag(8000, "port to listen on; 0: any that is free", at_least=0, at_most=65_535)
    api_key: str | None = flag(
        None, "key that requests must bring, as Authorization: Bearer KEY; default: the environment's SLM_API_KEY"
    )
    api_key_file: str | None = flag(None, "file with the key, which lists of processes do not show; default: none")
    allowed_hosts: tuple[str, ...] = flag((), ALLOWED_HOSTS)
    root_path: str = flag("", "path at which a proxy shows this server, as /slm; default: none")
    cors: tuple[str, ...] = flag(
        (), "web origin whose pages may ask, as https://example.org; may be given several times; default: none"
    )
    max_batch: int = flag(32, "texts written together", at_least=1)
    max_queue: int = flag(128, "requests that may wait for a place among them", at_least=0)
    max_streams: int = flag(256, "requests that may be streamed to at once", at_least=1)
    max_choices: int = flag(32, "texts that a request may ask for: prompts times n", at_least=1)
    max_tokens: int = flag(2048, "tokens that a request may ask for in each text", at_least=1)
    max_request_bytes: int = flag(1_000_000, "length of a request's body", at_least=1)
    timeout: float = flag(120.0, "seconds that a request may take, including the time it waits", above=0)
    run_dir: str | None = flag(None, "a run's folder, or one with several, to watch on the page; default: none")
    device: Device = flag("auto", DEVICE)
    threads: int | None = flag(None, "CPU cores to use; default: all", at_least=1)

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        yield from super().problems()
        yield from _too_many_threads(self.threads)
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            yield "--api_key must be of printable ASCII characters"
        if self.api_key is not None and self.api_key_file is not None:
            yield "--api_key and --api_key_file exclude each other"
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path):
            yield f"--root_path {self.root_path!r} is no path: write it as /slm, without a slash at its end"
        for origin in self.cors:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                yield f"--cors {origin!r} is not an origin: write it as https://example.org, without a path, or *"


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Measure a trained model on a text."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model_path", "dataset")
    EXAMPLE: ClassVar[str] = "runs/book other.txt"

    model_path: str = flag("best_model.pt", MODEL_PATH)
    dataset: str = flag("stories", DATASET)
    text: str | None = flag(None, "this text itself, instead of a dataset")
    text_field: str = flag("text", TEXT_FIELD)
    errors: Errors = flag("strict", ERRORS)
    encoding: str = flag("utf-8", ENCODING)
    cache_dir: str = flag("~/.cache/slm", CACHE_DIR)
    batch_size: int = flag(32, "sequences of the model's context length at a time", at_least=1)
    precision: Precision = flag("fp32", f"{PRECISION}; others are faster, and compute slightly different losses")
    device: Device = flag("auto", DEVICE)

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        yield from super().problems()
        if self.text == "":
            yield "--text must not be empty"
        if self.text is not None and self.dataset != "stories":
            yield "--text and --dataset exclude each other"


@dataclass(frozen=True)
class ExportConfig(Settings):
    """Write a trained model in the formats of other programs."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model_path",)
    EXAMPLE: ClassVar[str] = "runs/book/best_model.pt --format onnx,gguf"

    model_path: str = flag("best_model.pt", "checkpoint to export")
    format: str = flag("onnx", f"one or several, separated by commas: {', '.join(EXPORT_FORMATS)}")
    out_dir: str | None = flag(None, "folder to write to; default: that of model_path")
    push: str | None = flag(
        None, "owner/name on the Hugging Face hub to put the folder for transformers at; a new one is private"
    )

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        yield from super().problems()
        yield from format_problems("format", self.format)
        if self.push is not None:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push):
                yield f"--push must be owner/name, not {self.push!r}"
            if "huggingface" not in self.format.split(","):
                yield "--push is for --format huggingface, the folder for transformers"


@dataclass(frozen=True)
class WatchConfig(Settings):
    """Show runs as they learn, in a browser: curves, and the story at each evaluation."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("run_dir",)
    EXAMPLE: ClassVar[str] = "runs"

    run_dir: str = flag(".", "folder of a run, or one with several runs below it")
    host: str = flag("127.0.0.1", HOST)
    port: int = flag(8001, "port to listen on; 0: any that is free", at_least=0, at_most=65_535)
    allowed_hosts: tuple[str, ...] = flag((), ALLOWED_HOSTS)


@dataclass(frozen=True)
class ImportConfig(Settings):
    """Make a checkpoint of a GPT-2 in the layout of the transformers library, or of nanoGPT."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("from",)
    EXAMPLE: ClassVar[str] = "gpt2 --out_dir runs/gpt2"

    from_: str = flag(
        "",
        "folder with config.json, weights, tokenizer, a hub name like gpt2, or nanoGPT's ckpt.pt; no default: give one",
    )
    out_dir: str = flag(".", "folder for best_model.pt")
    overwrite: bool = flag(False, "replace the best_model.pt in out_dir")

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        yield from super().problems()
        if not self.from_:
            yield "--from is missing: give a folder with a config.json, or the name of a model on the hub"


def _too_many_threads(threads: int | None) -> Iterator[str]:
    if threads is not None and threads > usable_cores():
        yield f"--threads {threads} is more than the {usable_cores()} cores there are"
