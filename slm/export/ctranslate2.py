"""CTranslate2: a folder for `ctranslate2.Generator`, on CPUs and NVIDIA GPUs.

`ctranslate2` keeps fp32; `ctranslate2-int8` rounds each row of a matrix, the token embedding's too, to 8 bits with a
scale of its own. Prompts are lists of tokens in GPT-2's printable alphabet, as tokenizer.json gives them, and begin
with `<|endoftext|>`. A token beyond the context length raises RuntimeError there: max_length keeps from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from slm.checkpoint.file import Checkpoint
from slm.data.source import END_OF_TEXT
from slm.export.huggingface import tokenizer_json
from slm.export.parts import Array, compare, compare_distributions, expected_logits, random_ids, weights


def write(loaded: Checkpoint, path: Path, format: str) -> None:
    """Write the folder `path`. Raises ModuleNotFoundError where `ctranslate2` is not installed."""
    from ctranslate2 import specs

    config = loaded.config
    w = {name: array.copy() for name, array in weights(loaded).items()}  # CTranslate2 rounds in place
    spec = specs.TransformerDecoderModelSpec.from_config(
        config.n_layer, config.n_head, activation=specs.Activation.GELUTanh
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = w["token_embedding.weight"]
    decoder.position_encodings.encodings = w["position_embedding.weight"]
    _set_norm(decoder.layer_norm, w, "final_norm")
    for n, layer in enumerate(decoder.layer):
        _set_norm(layer.self_attention.layer_norm, w, f"blocks.{n}.attention_norm")
        _set_linear(layer.self_attention.linear[0], w, f"blocks.{n}.attention.qkv")
        _set_linear(layer.self_attention.linear[1], w, f"blocks.{n}.attention.projection")
        _set_norm(layer.ffn.layer_norm, w, f"blocks.{n}.mlp_norm")
        _set_linear(layer.ffn.linear_0, w, f"blocks.{n}.mlp.up")
        _set_linear(layer.ffn.linear_1, w, f"blocks.{n}.mlp.down")
    spec.register_vocabulary(loaded.tokenizer.printable())
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = END_OF_TEXT
    spec.config.layer_norm_epsilon = 1e-5
    spec.validate()
    spec.optimize("int8" if format == "ctranslate2-int8" else None)
    path.mkdir()
    spec.save(str(path))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_json(loaded.tokenizer)), encoding="utf-8")


def check(loaded: Checkpoint, path: Path, format: str) -> str:
    """Run a batch through CTranslate2 on the CPU and compare with PyTorch."""
    from ctranslate2 import Generator

    ids = random_ids(loaded)
    generator = Generator(str(path), device="cpu", intra_threads=1)
    actual = np.array(generator.forward_batch(ids.tolist(), return_log_probs=False))
    expected = expected_logits(loaded, ids)
    return compare(actual, expected) if format == "ctranslate2" else compare_distributions(actual, expected, 1e-2)


def _set_norm(spec: Any, w: dict[str, Array], name: str) -> None:
    spec.gamma, spec.beta = w[f"{name}.weight"], w[f"{name}.bias"]


def _set_linear(spec: Any, w: dict[str, Array], name: str) -> None:
    spec.weight, spec.bias = w[f"{name}.weight"], w[f"{name}.bias"]
