"""Hugging Face: a folder that transformers and transformers.js load as GPT-2, and that other tools take as one.

config.json, generation_config.json      the shape
model.safetensors                        the weights; the output layer is the token embedding and not stored again
tokenizer.json, tokenizer_config.json    the tokenizer; vocab.json and merges.txt are the same for older tools
onnx/model.onnx, model_quantized.onnx    what transformers.js runs: fp32 by default in Node, 8 bits in browsers
README.md                                a model card with what was measured in training
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm import __version__
from slm.checkpoint.file import Checkpoint
from slm.checkpoint.transformers import layout
from slm.data.source import END_OF_TEXT
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.export import onnx
from slm.export.parts import compare, expected_logits, random_ids, weights

ONNX = {"model.onnx": "onnx", "model_quantized.onnx": "web"}  # transformers.js' names -> our formats
TEXTS = (
    "Once upon a time, there was a little girl who couldn't sleep; she'd seen 3 owls, hadn't she?",
    f"The end.{END_OF_TEXT}One day{END_OF_TEXT}{END_OF_TEXT} \n",
    "  a   b \t\tc\r\nd\n\n\n e\x00f\x7f \u00a0\u2003g   ",
    "Zoë, Zoe\u0308, Ångström, ﬁ, ß, İ, Ω≈ç√, १२३, ½",
    "日本語のテキスト、中文和한국어 العربية ไทย",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽 \u200b\ufeff\U0010ffff",
    "DON'T I'LL we're I'm o'clock ''s 'Tis",
)


def write(loaded: Checkpoint, path: Path, format: str) -> None:
    """Make the folder `path`. Raises ModuleNotFoundError where `safetensors` is not installed."""
    from safetensors.numpy import save

    config, tokenizer, ours = loaded.config, loaded.tokenizer, weights(loaded)
    tensors = {
        f"transformer.{theirs}": np.ascontiguousarray(ours[name].T if ".c_" in theirs else ours[name])
        for name, theirs, _ in layout(config)
    }
    path.mkdir()
    # Not save_file, which hides what the disk refuses and makes a file that only its owner can read.
    (path / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    end = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    shape = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **end,
    }
    _write_json(path / "config.json", shape)
    generation = {**end, "pad_token_id": tokenizer.end_of_text, "max_length": config.context_length}
    _write_json(path / "generation_config.json", generation)
    whole = tokenizer_json(tokenizer)
    _write_json(path / "tokenizer.json", whole)
    _write_json(path / "tokenizer_config.json", _tokenizer_config(tokenizer, config.context_length))
    _write_json(path / "vocab.json", whole["model"]["vocab"])
    _write_text(path / "merges.txt", "\n".join(["#version: 0.2", *whole["model"]["merges"], ""]))
    _write_text(path / "README.md", _card(loaded, path.name))
    if sum(array.nbytes for array in ours.values()) < onnx.LARGEST:
        (path / "onnx").mkdir()
        for name, kind in ONNX.items():
            onnx.write(loaded, path / "onnx" / name, kind)


def check(loaded: Checkpoint, path: Path, format: str) -> str:
    """Compare the logits and the tokens of awkward texts with those of transformers, and run what is in onnx/."""
    in_onnx = "; too large for transformers.js, so without onnx/"
    if (path / "onnx").exists():
        in_onnx = ""
        for name, kind in ONNX.items():
            onnx.check(loaded, path / "onnx" / name, kind)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"transformers cannot load it: {type(error).__name__}: {reason}") from error
        ids = random_ids(loaded)
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids)).logits.numpy()
        found = compare(logits, expected_logits(loaded, ids))
        for text in TEXTS:
            expected = loaded.tokenizer.encode(text).tolist()
            if tokenizer(text)["input_ids"] != expected or tokenizer.decode(expected) != text:
                raise UserError(f"the exported tokenizer is not the same: it has other tokens for {text!r}")
    return f"{found}, the same tokens of {len(TEXTS)} texts{in_onnx}"


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokenizer` in the format of Hugging Face's tokenizers library: the content of a tokenizer.json."""
    names = tokenizer.printable()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokenizer.end_of_text, **_added(END_OF_TEXT)}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: id for id, name in enumerate(names)},
            "merges": [f"{names[left]} {names[right]}" for left, right in tokenizer.merges()],
        },
    }


def _tokenizer_config(tokenizer: Tokenizer, context_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "added_tokens_decoder": {str(tokenizer.end_of_text): _added(END_OF_TEXT)},
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }


def _added(content: str) -> dict[str, Any]:
    """A token that is found in text as it stands."""
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _card(loaded: Checkpoint, name: str) -> str:
    """The model card, in Markdown with the hub's header."""
    config, facts = loaded.config, loaded.facts
    count = sum(tensor.numel() for tensor in loaded.weights.values())
    columns = {"loss": ".4f", "accuracy": ".1%", "bits_per_byte": ".4f", "tokens": ",.0f"}
    rows = [
        f"| {split} | {' | '.join(_number(facts[key], column, form) for column, form in columns.items())} |\n"
        for key, split in (("val", "validation"), ("train", "training"))
        if isinstance(facts.get(key), Mapping)
    ]
    measured = (
        "\n| text | loss in nats a token | accuracy | bits per byte | tokens |\n|---|---|---|---|---|\n" + "".join(rows)
    )
    known = {"text": "Text", "step": "Optimizer steps", "tokens_seen": "Tokens seen in training"}
    lines = [f"- {words}: {' '.join(str(facts[key]).split())}\n" for key, words in known.items() if key in facts]
    prompt = f"{END_OF_TEXT}Once upon a time"
    room = max(1, min(100, config.context_length - len(loaded.tokenizer.encode(prompt))))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A GPT-2 made by small-language-model {__version__}.

- Parameters: {count:,}
- Layers: {config.n_layer}; heads: {config.n_head}; width: {config.n_embd}
- Context: {config.context_length:,} tokens; vocabulary: {config.vocab_size:,}
{"".join(lines)}{measured if rows else ""}
In this folder, with `transformers` installed:

```python
from transformers import pipeline
write = pipeline("text-generation", model=".")
print(write("{prompt}", max_new_tokens={room}, do_sample=True)[0]["generated_text"])
```

`{END_OF_TEXT}` stands before each text and after it.
"""


def _number(measures: Mapping[str, Any], name: str, form: str) -> str:
    value = measures.get(name)
    return format(value, form) if isinstance(value, int | float) else ""


def _write_json(path: Path, content: object) -> None:
    _write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and nothing below an error from transformers."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
