"""Both engines under any order of prefill, decode and keep give the logits that each sequence has alone."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.checkpoint.file import Checkpoint
from slm.config.model import ModelConfig
from slm.data.tokenizer import Tokenizer
from slm.export.command import export
from slm.inference.onnx_engine import OnnxEngine
from slm.inference.torch_engine import TorchEngine
from slm.model.gpt import GPT

CONTEXT = 5
BYTES = Tokenizer("bytes", [bytes([byte]) for byte in range(256)])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A network, and it in both engines."""
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=257, context_length=CONTEXT, n_layer=2, n_head=2, n_embd=8)
    weights = {name: 10 * weight for name, weight in GPT(shape).state_dict().items()}
    loaded = Checkpoint(dataclasses.replace(shape), weights, BYTES, {})
    base = tmp_path_factory.mktemp("toy") / "m"
    export(loaded, "onnx", base)
    model = loaded.model()
    return model, {"torch": TorchEngine(model), "onnx": OnnxEngine(base.with_name("m.onnx"), threads=1)}


@torch.no_grad()
def alone(model, rows):
    return np.stack([model(torch.tensor([row]))[0, -1].numpy() for row in rows])


@pytest.mark.parametrize("name", ["torch", "onnx"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_order_of_calls(toy, name, data):
    model, engine = toy[0], toy[1][name]
    token = st.integers(0, 256)
    engine.keep([])
    rows = []
    for _ in range(data.draw(st.integers(1, 12))):
        call = data.draw(st.sampled_from(["prefill", "decode", "decode", "keep"]))
        if call == "prefill" and len(rows) < 8:
            new = data.draw(st.lists(st.lists(token, min_size=1, max_size=CONTEXT), min_size=1, max_size=4))
            logits = engine.prefill([np.array(row) for row in new])
            rows += new
            assert np.abs(logits - alone(model, new)).max() < 1e-3
        elif call == "decode" and rows and max(map(len, rows)) < CONTEXT:
            ids = data.draw(st.lists(token, min_size=len(rows), max_size=len(rows)))
            logits = engine.decode(np.array(ids))
            rows = [[*row, id] for row, id in zip(rows, ids, strict=True)]
            assert np.abs(logits - alone(model, rows)).max() < 1e-3
        else:
            kept = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if rows else []
            engine.keep(kept)
            rows = [list(rows[place]) for place in kept]
