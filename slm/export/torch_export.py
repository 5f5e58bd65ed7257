"""torch.export: a graph that PyTorch runs from Python without this project's code, and compiles for C++.

  ids (B, T) int64 -> logits (B, T, V) fp32, with 1 <= T <= context length, on whichever device the graph is moved to

`torch.export.load(path).module()` runs it; torch.compile and AOTInductor make machine code of it. Extra files inside:
config.json and tokenizer.json, as in `torchscript`.

Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch.export import Dim

from slm.checkpoint.file import Checkpoint
from slm.export.parts import compare, expected_logits, random_ids
from slm.export.torchscript import Graph, extra_files


def write(loaded: Checkpoint, path: Path, format: str) -> None:
    """Write the file `path`. The example's two sequences of two tokens keep B and T from becoming constants."""
    context = loaded.config.context_length
    sizes = {0: Dim("B"), 1: Dim("T", max=context) if context > 1 else 1}
    example = torch.zeros(2, min(2, context), dtype=torch.int64)
    program = torch.export.export(Graph(loaded), (example,), dynamic_shapes=(sizes,))
    whole = io.BytesIO()  # what the disk refuses would end the process
    torch.export.save(program, whole, extra_files=extra_files(loaded))
    path.write_bytes(whole.getbuffer())


def check(loaded: Checkpoint, path: Path, format: str) -> str:
    """Run a batch through the loaded graph and compare with PyTorch."""
    ids = random_ids(loaded)
    with torch.inference_mode():
        actual = torch.export.load(path).module()(torch.from_numpy(ids)).numpy()
    return compare(actual, expected_logits(loaded, ids))
