"""TorchScript and torch.export: a process without this project's code computes the same."""

import dataclasses
import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from slm.checkpoint.file import Checkpoint
from slm.config.formats import EXPORT_FORMATS
from slm.config.model import ModelConfig
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.export import torch_export, torchscript
from slm.export.command import export
from slm.export.parts import expected_logits
from slm.model.gpt import GPT

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
ELSEWHERE = """
import json, sys
sys.modules["slm"] = None  # an import of it fails
import numpy, torch
files = {"config.json": "", "tokenizer.json": ""}
if sys.argv[1] == "torchscript":
    graph = torch.jit.load("m", _extra_files=files)
else:
    graph = torch.export.load("m", extra_files=files).module()
given = numpy.load("ids.npz")
with torch.inference_mode():
    numpy.savez("logits.npz", **{name: graph(torch.from_numpy(given[name])).numpy() for name in given})
print(json.dumps({name: json.loads(content) for name, content in files.items()}))
"""


MODULES = {"torchscript": torchscript, "torch_export": torch_export}


@pytest.fixture(params=MODULES)
def format(request):
    return request.param


def write(loaded, path, format):
    MODULES[format].write(loaded, path, format)


def load(path, format):
    return torch.jit.load(path) if format == "torchscript" else torch.export.load(path).module()


def batches(loaded):
    """Ids of one and of three rows, of one token, some, and all that fit, by name."""
    lengths = (1, 7, loaded.config.context_length)
    random = np.random.default_rng(0)
    return {f"{B} x {T}": random.integers(loaded.config.vocab_size, size=(B, T)) for B in (1, 3) for T in lengths}


def test_a_process_without_our_code_computes_the_same(trained_model, tmp_path, format):
    write(trained_model, tmp_path / "m", format)
    given = batches(trained_model)
    np.savez(tmp_path / "ids.npz", **given)
    result = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, format], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    logits = np.load(tmp_path / "logits.npz")
    assert set(logits) == {"1 x 1", "1 x 7", "1 x 64", "3 x 1", "3 x 7", "3 x 64"}
    for name, ids in given.items():
        np.testing.assert_allclose(logits[name], expected_logits(trained_model, ids), rtol=0, atol=1e-4)

    files = json.loads(result.stdout)
    assert files["config.json"] == {"context_length": 64, "vocab_size": 400, "end_of_text": 399}
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    text = "Once upon a time, 日本 🙂<|endoftext|>The  end"
    assert tokenizer.encode(text).ids == trained_model.tokenizer.encode(text).tolist()


@pytest.mark.parametrize("attention", ["flash", "math"])
def test_every_length_and_batch_size(each_model, tmp_path, attention, format):
    loaded = dataclasses.replace(each_model, config=dataclasses.replace(each_model.config, attention=attention))
    write(loaded, tmp_path / "m", format)
    graph = load(tmp_path / "m", format)
    for ids in batches(loaded).values():
        logits = graph(torch.from_numpy(ids))
        assert not logits.requires_grad
        np.testing.assert_allclose(logits, expected_logits(loaded, ids), rtol=0, atol=1e-4)


def test_a_context_of_one_token(tmp_path, format):
    shape = ModelConfig(vocab_size=257, context_length=1, n_layer=1, n_head=1, n_embd=6)
    tokenizer = Tokenizer("bytes", [bytes([byte]) for byte in range(256)])
    loaded = Checkpoint(shape, GPT(shape).state_dict(), tokenizer, {})
    write(loaded, tmp_path / "m", format)
    for ids in (np.array([[5]]), np.array([[5], [6], [256]])):
        logits = load(tmp_path / "m", format)(torch.from_numpy(ids))
        np.testing.assert_allclose(logits, expected_logits(loaded, ids), rtol=0, atol=1e-6)


def test_more_than_the_context_is_refused(trained_model, tmp_path, format):
    write(trained_model, tmp_path / "m", format)
    error, part = {"torchscript": (RuntimeError, "size of tensor a"), "torch_export": (AssertionError, "<= 64")}[format]
    with pytest.raises(error, match=part):
        load(tmp_path / "m", format)(torch.zeros(1, 65, dtype=torch.int64))


def test_the_graph_names_no_device(trained_model, tmp_path, format):
    write(trained_model, tmp_path / "m", format)
    graph = load(tmp_path / "m", format)
    if format == "torchscript":
        code, elsewhere = str(graph.inlined_graph), torch.jit.load(tmp_path / "m", map_location="meta")
    else:
        code, elsewhere = graph.code, graph.to("meta")
    assert re.search(r"aten(::|\.)embedding", code)
    assert "device" not in code.lower()
    assert elsewhere(torch.zeros(2, 3, dtype=torch.int64, device="meta")).shape == (2, 3, 400)


def test_export_tries_the_file_in_silence(each_model, tmp_path, capfd, format):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = export(each_model, format, tmp_path / "m")
    assert said.startswith(f"{format:12} {tmp_path / 'm'}{EXPORT_FORMATS[format][1]} (")
    assert ": matches PyTorch" in said
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")


def test_a_file_with_a_wrong_weight_is_not_kept(trained_model, tmp_path, monkeypatch, format):
    weight = trained_model.weights["blocks.1.mlp.up.weight"].clone()
    weight[3, 5] += 0.1
    altered = dataclasses.replace(trained_model, weights={**trained_model.weights, "blocks.1.mlp.up.weight": weight})
    write = MODULES[format].write
    monkeypatch.setattr(MODULES[format], "write", lambda loaded, *where: write(altered, *where))
    with pytest.raises(UserError, match=f"^{format}: the exported model is not the same: "):
        export(trained_model, format, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
