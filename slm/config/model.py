"""The shape of the network, and the named ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from slm.config.fields import Settings, flag


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The shape of a GPT-2-style network (Radford et al., 2019)."""

    vocab_size: int = flag(
        50_257, "number of tokens; below 50,257: GPT-2's most common in the text; with bpe: how many to train"
    )
    context_length: int = flag(128, "tokens the model can look back on", at_least=1)
    n_layer: int = flag(6, "transformer blocks", at_least=1)
    n_head: int = flag(6, "attention heads; must divide n_embd", at_least=1)
    n_embd: int = flag(384, "width: the length of a token's vector", at_least=1)
    dropout: float = flag(
        0.0, "share of activations zeroed in training; try 0.1 for many epochs of a small text", at_least=0, below=1
    )
    bias: bool = flag(True, "biases in linear layers and LayerNorms")
    attention: Literal["flash", "math"] = flag(
        "flash", "flash: torch's fused kernel where there is one; math: plain matrix products"
    )

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        yield from super().problems()
        if self.n_head > 0 and self.n_embd % self.n_head:
            around = (n for step in range(1, 1024) for n in (self.n_head - step, self.n_head + step))
            near = next((n for n in around if n > 0 and self.n_embd % n == 0), 1)
            yield f"--n_embd {self.n_embd} is not divisible by --n_head {self.n_head}: try --n_head {near}"
        if self.vocab_size < 257:
            yield f"--vocab_size must be at least 257 (256 bytes and the end of text), not {self.vocab_size}"


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
