"""Prompts in, stories out: a model with its tokenizer, from whichever file it lies in."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm.config.use import GenerateConfig
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.files import find_model, user_path
from slm.inference.generator import Engine, Generator, Token
from slm.inference.sampling import Sampling

BATCH = 32  # texts written together
KEYWORDS = {"max_length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"}


def load(model_path: str | Path, *, device: str = "auto", threads: int | None = None) -> TextModel:
    """The model in a checkpoint (.pt), an ONNX file of ours (.onnx, without PyTorch) or a folder that holds one.

    A folder may also be one for transformers. device: auto, cpu, cuda or mps; an .onnx file runs on the CPU. threads:
    cores to use, in PyTorch by the whole process; default: for an .onnx file those that are fast for one text, in
    PyTorch as they are. Raises UserError where there is no such model, or it is damaged.
    """
    path = find_model(user_path(str(model_path)))
    if path.suffix.lower() == ".onnx":
        if device not in ("auto", "cpu"):
            raise UserError(f"--device {device}: an .onnx file runs on the CPU here; take the .pt file")
        from slm.inference.onnx_engine import OnnxEngine

        onnx = OnnxEngine(path, threads=threads)
        return TextModel(onnx, onnx.tokenizer, onnx.facts)
    import torch

    from slm.checkpoint.open import open_model
    from slm.device import pick_device
    from slm.inference.torch_engine import TorchEngine

    if threads is not None:
        torch.set_num_threads(threads)
    loaded = open_model(path)
    return TextModel(TorchEngine(loaded.model(pick_device(device))), loaded.tokenizer, loaded.facts)


class Piece(NamedTuple):
    """What one more token adds to a text: nothing, where a character or a stop string may go on in the next one.

    number: of the text. token: None where the text ended and only what was held back is left to show.
    """

    number: int
    text: str
    token: Token | None


class TextModel:
    """Writes texts, one call at a time."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, facts: Mapping[str, Any]):
        self.engine, self.tokenizer, self.facts = engine, tokenizer, facts
        self.context_length = engine.context_length
        self._generator = Generator(engine, tokenizer.end_of_text)

    def generate(self, prompt: str = "", **how: Any) -> str:
        """What follows `prompt`; keywords as in `stream`."""
        return "".join(self.stream(prompt, **how))

    def stream(self, prompt: str = "", *, stop: str | Sequence[str] = (), **how: Any) -> Iterator[str]:
        """What follows `prompt`, in pieces, as it is written; never half a character.

        Keywords are flags of `slm generate`: max_length, temperature, top_k, top_p, min_p, repetition_penalty, seed
        and stop, which may be one text or several. Raises UserError where a value cannot be used.
        """
        if unknown := how.keys() - KEYWORDS:
            raise TypeError(f"no keyword {min(unknown)!r}: there are stop, {', '.join(sorted(KEYWORDS))}")
        config = GenerateConfig(stop=(stop,) if isinstance(stop, str) else tuple(stop), **how)
        problems = [*config.problems()]
        if problems:
            raise UserError(*problems)
        return (piece.text for piece in self.write([prompt], config))

    def encode(self, prompt: str) -> list[int]:
        """The ids of `prompt` as the model knows the beginning of a text: after the end of another one."""
        return [self.tokenizer.end_of_text, *self.tokenizer.encode(prompt).tolist()]

    def write(self, prompts: Sequence[str], config: GenerateConfig, alternatives: int | None = None) -> Iterator[Piece]:
        """Continue each prompt `config.num_samples` times; text n is sample n % num_samples of prompt n // num_samples.

        alternatives: how many likely tokens to tell with each chosen one; None: none, and no probabilities.
        """
        encoded = [self.encode(prompt) for prompt in prompts]
        numbers = range(len(prompts) * config.num_samples)
        sampling = Sampling(config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty)
        for first in range(0, len(numbers), BATCH):
            batch = numbers[first : first + BATCH]
            growing = [Growing(config.stop) for _ in batch]

            def ends(place: int, token: int, growing: Sequence[Growing] = growing) -> bool:
                return growing[place].add(self.tokenizer.tokens[token])

            steps = self._generator.generate(
                [encoded[number // config.num_samples] for number in batch],
                max_length=config.max_length,
                sampling=sampling,
                random=[random_for(config.seed, number % config.num_samples) for number in batch],
                ends=ends,
                alternatives=alternatives,
            )
            for step in steps:
                for number, text, token in zip(batch, growing, step, strict=True):
                    if token is not None:
                        yield Piece(number, text.take(), token)
            for number, text in zip(batch, growing, strict=True):
                text.add(b"", final=True)
                if rest := text.take():
                    yield Piece(number, rest, None)


def random_for(seed: int | None, sample: int) -> np.random.Generator:
    """The draws for one of the samples of a prompt: the same ones for the same seed; None: new ones."""
    return np.random.default_rng(None if seed is None else (seed, sample))


class Growing:
    """A text of which the end is held back while it is half a character, or may become one of the strings `stop`."""

    def __init__(self, stop: Sequence[str]):
        self._stop, self._held, self._ready, self._stopped = stop, "", "", False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes, final: bool = False) -> bool:
        """Take in more bytes of the text; true where it ends with them."""
        if self._stopped:
            return True
        text = self._held + self._decoder.decode(data, final)
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        self._stopped = bool(found)
        end = min(found) if found else len(text) if final else len(text) - self._doubtful(text)
        self._ready, self._held = self._ready + text[:end], text[end:]
        return self._stopped

    def take(self) -> str:
        """What can be shown and was not yet taken."""
        ready, self._ready = self._ready, ""
        return ready

    def _doubtful(self, text: str) -> int:
        """How many characters at the end of `text` begin one of the stop strings."""
        lengths = (n for stop in self._stop for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
        return max(lengths, default=0)
