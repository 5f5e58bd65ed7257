"""`slm doctor`: what this machine can do, and how long a text takes on it. What can be timed is timed."""

from __future__ import annotations

import json
import math
import platform
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from slm import __version__
from slm.config.fields import python
from slm.config.train import DoctorConfig, TrainConfig
from slm.cores import usable_cores
from slm.data.corpus import Corpus, prepare
from slm.data.encoding import Tokens
from slm.data.tokenizer import gpt2
from slm.device import (
    BF16_GAIN,
    PRECISIONS,
    compiles_by_default,
    name_of,
    pick_device,
    pick_precision,
    precision_of,
    timed_flops,
    total_memory,
)
from slm.errors import UserError
from slm.files import user_path
from slm.training.describe import duration
from slm.training.run import Clock, Run, assemble, check_length

# The largest split of roneneldan/TinyStories has 1,911,420,483 bytes; GPT-2's tokens have 4.1 bytes of such stories.
TINYSTORIES, TINYSTORIES_TOKENS = "TinyStories", 1_911_420_483 / 4.1
TIMED_SECONDS, FEWEST_STEPS = 2.5, 3
OPTIONAL = {  # module -> what needs it
    "tokenizers": "--tokenizer bpe",
    "fastapi": "slm serve, slm watch", "uvicorn": "slm serve, slm watch", "prometheus_client": "slm serve, slm watch",
    "ctranslate2": "--format ctranslate2", "gguf": "--format gguf", "safetensors": "--format huggingface",
    "tensorboard": "--tensorboard",
}  # fmt: skip


def main(config: DoctorConfig) -> None:
    """Print what there is, what a run would choose, and how long it would take."""
    facts = examine(config)
    print(json.dumps(facts, indent=2) if config.json else in_words(facts))


def examine(config: DoctorConfig) -> dict[str, Any]:
    """What `main` prints: plain values, speeds in tokens/s and FLOP/s, times in seconds, sizes in bytes."""
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    corpus = prepare(config.data, TrainConfig().model.vocab_size)
    check_length(corpus, TrainConfig().model.context_length)
    facts: dict[str, Any] = {
        "slm": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "system": platform.platform(), "cores": usable_cores(), "memory": _memory(torch.device("cpu")),
        "disk_free": shutil.disk_usage(user_path(".")).free, "device": device.type, "device_name": name_of(device),
        "device_memory": _memory(device), "precision": precision_of(dtype), "compile": compiles_by_default(device),
        "flops": dict(_products(device)), "asked": config.precision,
    }  # fmt: skip
    own = TextPlan(corpus.description, corpus, TrainConfig(), len(corpus.train))
    known = TextPlan(TINYSTORIES, _like_tinystories(), TrainConfig(max_minutes=10.0), TINYSTORIES_TOKENS)
    facts |= {"fault": "", "texts": [], "missing": {name: use for name, use in OPTIONAL.items() if not find_spec(name)}}
    try:
        for plan in (own, known):
            run = assemble(plan.config, plan.corpus, device, dtype)
            facts["texts"].append({
                "text": plan.name, "tokens": round(plan.tokens), "rows": run.learner.model.rows_in_training,
                "batch_size": run.plan.batch_size, "tokens_per_second": round(speed(run), 1),
            })  # fmt: skip
    except UserError as error:
        facts["fault"] = str(error)
    return facts


def _memory(device: torch.device) -> float | None:
    memory = total_memory(device)
    return memory if math.isfinite(memory) else None


def _products(device: torch.device) -> Iterator[tuple[str, float]]:
    """Each precision that `device` has products in, and their FLOP/s."""
    for name, dtype in PRECISIONS.items():
        if (name, device.type) != ("fp16", "cpu"):  # it has them, but nothing here uses them
            with suppress(RuntimeError, TypeError):  # as older Apple systems raise for bf16
                yield name, timed_flops(device, dtype)


class TextPlan(NamedTuple):
    """A text, and the run on it that is timed."""

    name: str
    corpus: Corpus  # of tokens like the text's
    config: TrainConfig
    tokens: float  # that the text itself has


def _like_tinystories() -> Corpus:
    """Random tokens: as in so large a text, nearly every one of GPT-2's occurs."""
    tokenizer = gpt2()
    drawn = np.random.default_rng(0).permutation(4 * tokenizer.vocab_size) % tokenizer.vocab_size
    ids = drawn.astype(np.uint16)  # as a text's are kept
    tokens = Tokens(ids, 1, 4 * len(ids))
    return Corpus(tokens, tokens, tokenizer, "", "")


def speed(run: Run, clock: Clock = time.perf_counter) -> float:
    """Tokens/s of steps of `run`, which is of no use afterwards; the first one, which prepares, does not count."""
    seconds: list[float] = []
    while len(seconds) <= FEWEST_STEPS or sum(seconds[1:]) < TIMED_SECONDS:
        begun = clock()
        batches = [run.batch(number) for number in run.plan.batches_of(len(seconds))]
        float(run.learner.step(batches, rate=0.0, seed=0).loss)  # waits for a GPU
        seconds.append(clock() - begun)
    return run.plan.tokens_per_step / statistics.median(seconds[1:])


def in_words(facts: Mapping[str, Any]) -> str:
    """The report of `examine` for people."""
    flops = facts["flops"]
    products = ", ".join(f"{name} {speed / 1e9:,.0f}" for name, speed in flops.items())
    why = "the fastest that it has"
    if facts["device"] == "cpu":
        why = f"bf16 is {flops['bf16'] / flops['fp32']:.1f} times as fast here, and is taken from {BF16_GAIN} on"
    elif facts["device"] == "mps":
        why = "always, on an Apple GPU"
    chosen = (
        f"auto: {facts['precision']} ({why})" if facts["asked"] == "auto" else f"{facts['precision']}, as asked for"
    )
    memory = f", {facts['memory'] / 1e9:.0f} GB of memory" if facts["memory"] else ""
    device_memory = f", {facts['device_memory'] / 1e9:.0f} GB" if facts["device"] == "cuda" else ""
    lines = [
        f"slm        {facts['slm']}; Python {facts['python']}, PyTorch {facts['torch']}",
        f"machine    {facts['system']}; {facts['cores']} cores{memory}, "
        f"{facts['disk_free'] / 1e9:.0f} GB free on this disk",
        f"device     {facts['device_name']}{device_memory}",
        f"products   {products} GFLOP/s",
        f"precision  {chosen}",
        f"compile    auto: {'on' if facts['compile'] else 'off'} (it is on only on CUDA)",
    ]
    if facts["fault"]:
        lines.append(f"fault      {facts['fault']}")
    elif facts["device"] != "cpu":
        lines.append("check      loss and gradients agree with the CPU's")
    lines += [line for text in facts["texts"] for line in _text_in_words(text)]
    lines += [
        f"missing    {name}, for {use}: {python()} -m pip install {name}" for name, use in facts["missing"].items()
    ]
    return "\n".join(lines)


def _text_in_words(text: Mapping[str, Any]) -> Iterator[str]:
    """What was timed on a text, in two lines."""
    rate, tokens = text["tokens_per_second"], text["tokens"]
    count = f"about {tokens / 1e6:,.0f} million" if text["text"] == TINYSTORIES else f"{tokens:,}"
    yield f"text       {text['text']}: {count} tokens, {text['rows']:,} embedding rows to train"
    yield (
        f"           {rate:,.0f} tokens/s with the default model, batch size {text['batch_size']}: "
        f"a pass takes {duration(tokens / rate)}; 10 minutes are {600 * rate:,.0f} tokens"
    )
