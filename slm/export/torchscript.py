"""TorchScript: a graph that PyTorch runs from Python or C++ without this project's code.

  ids (B, T) int64 -> logits (B, T, V) fp32, with 1 <= T <= context length, on whichever device the graph is moved to

Extra files inside: config.json with context_length, vocab_size and end_of_text, the id that a prompt begins with and a
story ends with; tokenizer.json for the package tokenizers. PyTorch calls TorchScript deprecated: it is for programs
that load it already, and `torch_export` for new ones.

Legend: B sequences, T tokens, C width, H heads, D = C / H, V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.checkpoint.file import Checkpoint
from slm.export.huggingface import tokenizer_json
from slm.export.parts import compare, expected_logits, random_ids


class Graph(nn.Module):
    """GPT.forward without a cache, in a form to capture: no choice depends on T, and no tensor names a device."""

    def __init__(self, loaded: Checkpoint):
        super().__init__()
        self.model = loaded.model().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        model: Any = self.model
        x = model.token_embedding(ids) + model.position_embedding.weight[: ids.size(1)]  # (B, T, C)
        for block in model.blocks:
            qkv = block.attention.qkv(block.attention_norm(x))  # (B, T, 3C)
            q, k, v = qkv.unflatten(-1, (3, model.config.n_head, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block.attention.projection(y.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.mlp_norm(x))
        return F.linear(model.final_norm(x), model.token_embedding.weight)


def extra_files(loaded: Checkpoint) -> dict[str, str]:
    """What a program needs besides the graph, by file name."""
    about = {
        "context_length": loaded.config.context_length,
        "vocab_size": loaded.config.vocab_size,
        "end_of_text": loaded.tokenizer.end_of_text,
    }
    return {"config.json": json.dumps(about), "tokenizer.json": json.dumps(tokenizer_json(loaded.tokenizer))}


def write(loaded: Checkpoint, path: Path, format: str) -> None:
    """Write the file `path`."""
    with warnings.catch_warnings(), torch.inference_mode(), path.open("wb") as file:
        warnings.simplefilter("ignore")  # that it is deprecated
        traced = torch.jit.trace(Graph(loaded), torch.zeros(2, 2, dtype=torch.int64))
        torch.jit.save(traced, file, _extra_files=extra_files(loaded))


def check(loaded: Checkpoint, path: Path, format: str) -> str:
    """Run a batch through the loaded graph and compare with PyTorch."""
    ids = random_ids(loaded)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        actual = torch.jit.load(path)(torch.from_numpy(ids)).numpy()
    return compare(actual, expected_logits(loaded, ids))
