"""`slm evaluate`."""

from __future__ import annotations

import numpy as np

from slm.checkpoint.open import open_model
from slm.config.use import EvaluateConfig
from slm.cores import usable_cores
from slm.data.encoding import Tokens, encode
from slm.data.sources import how_to_read, open_source
from slm.data.tokenizer import Tokenizer
from slm.device import pick_device, pick_precision
from slm.errors import UserError
from slm.evaluation.measure import Measures, evaluate, measure
from slm.files import find_model, user_path


def main(config: EvaluateConfig) -> None:
    """`slm evaluate`: print how well a model predicts a text."""
    print(f"{config.model_path}: {measure_model(config)}")


def measure_model(config: EvaluateConfig) -> Measures:
    """How well the model predicts the text."""
    path = find_model(user_path(config.model_path))
    if path.suffix.lower() == ".onnx":
        if config.device not in ("auto", "cpu") or config.precision not in ("auto", "fp32"):
            raise UserError("an .onnx file is measured on the CPU, in the precision that it has: take the .pt file")
        from slm.inference.onnx_engine import OnnxEngine

        engine = OnnxEngine(path, threads=usable_cores())
        tokens = tokens_of(config, engine.tokenizer)
        return measure(engine.loss, engine.context_length, tokens, engine.tokenizer, batch_size=config.batch_size)
    loaded = open_model(path)
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    tokens = tokens_of(config, loaded.tokenizer)
    return evaluate(loaded.model(device), tokens, loaded.tokenizer, batch_size=config.batch_size, dtype=dtype)


def tokens_of(config: EvaluateConfig, tokenizer: Tokenizer) -> Tokens:
    """The tokens to measure on; those of --text come after an end of text, which is not measured."""
    if config.text is not None:
        ids = np.array([tokenizer.end_of_text, *tokenizer.encode(config.text)])
        return Tokens(ids, 1, int(tokenizer.byte_counts[ids].sum()))
    source = open_source(config.dataset, **how_to_read(config), held_out=True)
    tokens = encode(source, tokenizer, config.cache_dir)
    print(f"text       {source.description}: {len(tokens):,} tokens, {tokens.documents:,} documents")
    return tokens
