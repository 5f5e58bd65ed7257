"""Prompts in, stories out: a model with its tokenizer, from whichever file it lies in."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm.config.fields import checked
from slm.config.use import GenerateConfig
from slm.data.tokenizer import Tokenizer, without_surrogates
from slm.errors import UserError
from slm.files import find_model, user_path
from slm.inference.continuation import Continuation, Piece
from slm.inference.generator import Batch, Engine
from slm.inference.sampling import Sampling

BATCH = 32  # texts written together
KEYWORDS = (
    "max_length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty",
    "presence_penalty", "seed",
)  # fmt: skip


def load(model_path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None) -> TextModel:
    """The model in a checkpoint (.pt), an ONNX file of ours (.onnx, without PyTorch) or a folder that holds one.

    A folder may also be one for transformers. device: auto, cpu, cuda or mps; an .onnx file runs on the CPU. threads:
    cores to use, in PyTorch by the whole process; default: for an .onnx file those that are fast for one text, in
    PyTorch as they are. Raises UserError where there is no such model, or it is damaged.
    """
    settings = {"model_path": str(model_path), "device": device, "threads": threads}
    checked(GenerateConfig, settings)
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


class Prompt(NamedTuple):
    """The beginning of a text as the model reads it.

    added: how many ids stand before its own: an end of text, or none. after_space: whether its last space was left off,
    for the first token to begin with.
    """

    text: str
    ids: list[int]
    added: int = 0
    after_space: bool = False


class TextModel:
    """Writes texts, from any number of threads, each as if it were alone: those of all calls form one batch."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, facts: Mapping[str, Any]):
        self.engine, self.tokenizer, self.facts = engine, tokenizer, facts
        self.caution = ""  # what must be known of the texts of this model
        if facts.get("barely_trained"):
            self.caution = "note: this model has barely trained, and its texts are near to random: train it longer"
        self.context_length = engine.context_length
        self._batch = Batch(engine)
        self._lock = threading.Lock()  # of the batch

    def generate(self, prompt: str = "", **how: Any) -> str:
        """What follows `prompt`, so that `prompt + generate(prompt)` is the whole text; keywords as in `stream`."""
        return "".join(self.stream(prompt, **how))

    def stream(
        self,
        prompt: str = "",
        *,
        stop: str | Sequence[str] = (),
        logit_bias: Mapping[int, float] | None = None,
        **how: Any,
    ) -> Iterator[str]:
        """What follows `prompt`, in pieces, as it is written; never half a character.

        Keywords are flags of `slm generate`: max_length, temperature, top_k, top_p, min_p, repetition_penalty,
        frequency_penalty, presence_penalty, seed and stop, which may be one text or several. logit_bias: what is added
        to the logits of tokens, by id. Raises UserError where a value cannot be used.
        """
        if unknown := how.keys() - set(KEYWORDS):
            raise TypeError(f"no keyword {min(unknown)!r}: there are stop, {', '.join((*KEYWORDS, 'logit_bias'))}")
        config = checked(
            GenerateConfig, {"prompt": prompt, "stop": (stop,) if isinstance(stop, str) else tuple(stop), **how}
        )
        bias = logit_bias or {}
        for id, value in bias.items():
            known = isinstance(id, int) and 0 <= id < self.tokenizer.vocab_size
            if not (known and isinstance(value, int | float) and math.isfinite(value)):
                most = self.tokenizer.vocab_size - 1
                raise UserError(f"logit_bias must be finite numbers by ids up to {most}, not {value!r} by {id!r}")
        return (piece.text for _, piece in self.write([prompt], config, logit_bias=bias) if piece.text)

    def read(self, prompt: str, *, whole: bool = False) -> Prompt:
        """`prompt` as the beginning of a text, which comes after the end of another one.

        Words begin with their space in the tokenizers here, so that hardly a text goes on after a token that is only a
        space: unless the `whole` prompt is wanted, a space at its end is left to the token that follows.
        """
        text = without_surrogates(prompt)
        space = text.endswith(" ") and not whole and int(self.tokenizer.begin_with_space.sum()) > 1
        ids = self.tokenizer.encode(text[:-1] if space else text).tolist()
        before = [] if ids[:1] == [self.tokenizer.end_of_text] else [self.tokenizer.end_of_text]
        return Prompt(text, before + ids, len(before), space)

    def write(
        self,
        prompts: Sequence[str],
        config: GenerateConfig,
        alternatives: int | None = None,
        logit_bias: Mapping[int, float] = {},
    ) -> Iterator[tuple[int, Piece]]:
        """Continue each prompt `config.num_samples` times: numbers of texts, and what is added to them.

        Text n is sample n % num_samples of prompt n // num_samples. alternatives: how many likely tokens to report with
        each chosen one, besides its probability; None: neither is computed.
        """
        read = [self.read(prompt) for prompt in prompts]
        sampling = Sampling(
            config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty,
            config.frequency_penalty, config.presence_penalty, logit_bias,
        )  # fmt: skip
        numbers = range(len(prompts) * config.num_samples)
        for first in range(0, len(numbers), BATCH):
            together = {
                number: Continuation(
                    list(read[number // config.num_samples].ids),
                    self.tokenizer,
                    config.max_length,
                    sampling,
                    random_for(config.seed, number % config.num_samples),
                    config.stop,
                    alternatives,
                    read[number // config.num_samples].after_space,
                )
                for number in numbers[first : first + BATCH]
            }
            yield from self._grow(together)

    def _grow(self, texts: Mapping[int, Continuation]) -> Iterator[tuple[int, Piece]]:
        """Let these join the batch, and yield what is added to them until all have ended.

        A step of the batch lets the texts of other calls grow as well, who find their pieces when they come for them.
        """
        with self._lock:
            self._batch.add(texts.values())
        try:
            while True:
                with self._lock:
                    pieces = [(number, piece) for number, text in texts.items() for piece in text.take()]
                    if not pieces:
                        if all(text.ended for text in texts.values()):
                            return
                        self._batch.step()
                yield from pieces
        finally:
            for text in texts.values():
                text.ended = True


def random_for(seed: int | None, sample: int) -> np.random.Generator:
    """The draws for one of the samples of a prompt: the same ones for the same seed; None: new ones."""
    return np.random.default_rng(None if seed is None else (seed, sample))
