"""What `slm generate` shows: a text that grows in the terminal as the model writes it."""

from __future__ import annotations

import codecs
import sys

from slm.config import GenerateConfig
from slm.device import pick_device
from slm.files import user_path
from slm.inference.generator import generate
from slm.inference.sampling import Sampling
from slm.inference.torch_engine import TorchEngine
from slm.model import checkpoint


def main(config: GenerateConfig) -> None:
    """`slm generate`: one sample is shown as it grows, several when whole."""
    loaded = checkpoint.load(user_path(config.model_path))
    engine = TorchEngine(loaded.model(pick_device(config.device)))
    tokenizer = loaded.tokenizer
    # A text begins after the end of another one, as in training.
    prompt = [tokenizer.end_of_text, *tokenizer.encode(config.prompt).tolist()]
    prompt_text = tokenizer.decode(prompt)
    steps = generate(
        engine, prompt,
        max_length=config.max_length, num_samples=config.num_samples, seed=config.seed,
        stop_token=tokenizer.end_of_text,
        sampling=Sampling(config.temperature, config.top_k, config.top_p),
    )  # fmt: skip
    if config.num_samples == 1:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may end in the next token
        _show(prompt_text)
        for (token,) in steps:
            _show(decoder.decode(tokenizer.decode_bytes([token] if token is not None else [])))
        _show(decoder.decode(b"", final=True) + "\n")
        return
    samples: list[list[int]] = [[] for _ in range(config.num_samples)]
    for tokens in steps:
        for sample, token in zip(samples, tokens, strict=True):
            if token is not None:
                sample.append(token)
    for number, sample in enumerate(samples, 1):
        _show(f"--- {number} of {config.num_samples} ---\n{prompt_text}{tokenizer.decode(sample)}\n\n")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
