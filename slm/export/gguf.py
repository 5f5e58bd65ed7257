"""GGUF: one file with weights and tokenizer for llama.cpp, Ollama and what is built on them.

`gguf` has matrices in fp16; `gguf-q8_0` in 8 bits, 32 values sharing a scale, where the row length allows, else fp16.
Vectors and the position embedding stay fp32, as in llama.cpp's own converter. There is no output matrix: llama.cpp
takes the token embedding.

In training each story begins after an `<|endoftext|>`, so add_bos_token is true: llama.cpp puts one before a prompt.
It makes room for a multiple of 256 tokens, and ends the process at a token beyond the context length: who asks for
tokens keeps prompt and answer within that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.checkpoint.file import Checkpoint
from slm.config.fields import python
from slm.errors import UserError
from slm.export.parts import Array, compare_distributions, expected_logits, random_ids, weights

# Our modules -> llama.cpp's, in which those of a block stand behind `blk.N.`
NAMES = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.projection": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "final_norm": "output_norm",
}
TOLERANCE = {"gguf": 1e-4, "gguf-q8_0": 1e-2}  # nats a token


def write(loaded: Checkpoint, path: Path, format: str) -> None:
    """Write the file `path`. Raises ModuleNotFoundError where `gguf` is not installed."""
    import gguf

    config, tokenizer, facts = loaded.config, loaded.tokenizer, loaded.facts
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name("small-language-model")
    writer.add_description("; ".join(f"{key}: {facts[key]}" for key in ("text", "step") if key in facts))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if format == "gguf-q8_0" else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)

    names = tokenizer.printable()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([gguf.TokenType.NORMAL] * tokenizer.end_of_text + [gguf.TokenType.CONTROL])
    merges = [f"{names[left]} {names[right]}" for left, right in tokenizer.merges()]
    writer.add_token_merges(merges or [""])  # llama.cpp demands a list, gguf a list of something
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)

    for name, array, kind in _tensors(loaded, format):
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(loaded: Checkpoint, path: Path, format: str) -> str:
    """Read every tensor back, and run the model in llama.cpp where `llama_cpp` is installed."""
    import gguf

    written = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, array, kind in _tensors(loaded, format):
        difference = np.abs(gguf.dequantize(written[name].data, kind) - array)
        if not (difference <= _rounding(array, kind.name)).all():
            off = f"{name} is off by {difference.max():.2g}, more than {kind.name} rounds"
            raise UserError(f"the exported model is not the same: {off}")
    found = f"{len(written)} tensors read back"
    ids = random_ids(loaded)
    try:
        actual = _llama_logits(path, ids)
    except ModuleNotFoundError as error:
        return f"{found}; not run, as {error.name} is not installed"
    if actual is None:
        return f"{found}; not compared, as llama.cpp crashes on this machine with such a file"
    return f"{found}; {compare_distributions(actual, expected_logits(loaded, ids), TOLERANCE[format])}"


def _tensors(loaded: Checkpoint, format: str) -> Iterator[tuple[str, Array, Any]]:
    """Each tensor's name in llama.cpp, its fp32 values, and the gguf.GGMLQuantizationType that it is kept in."""
    from gguf import GGMLQuantizationType as Kind

    for name, array in weights(loaded).items():
        module, role = name.rsplit(".", 1)
        *block, part = module.split(".", 2)  # of a block: "blocks", its number, the rest
        kind = Kind.Q8_0 if format == "gguf-q8_0" and array.shape[-1] % 32 == 0 else Kind.F16
        if array.ndim == 1 or part == "position_embedding":
            kind = Kind.F32
        yield (f"blk.{block[1]}." if block else "") + f"{NAMES[part]}.{role}", array, kind


def _rounding(array: Array, kind: str) -> Array | float:
    """How far rounding to `kind` may move each value of `array`."""
    if kind == "F32":
        return 0.0
    if kind == "F16":
        return np.maximum(np.abs(array) * 2.0**-11, 2.0**-25)  # half of the last bit
    step = np.abs(array).reshape(-1, 32).max(axis=1) / 127  # one scale for 32 values, in fp16 itself
    return np.repeat(step + 2.0**-18, 32).reshape(array.shape)


# Run in a process of its own: where llama.cpp crashes, as it does with Q8_0 on some CPUs, only that process ends.
_LLAMA = """
import sys
import numpy as np
from llama_cpp import Llama

path, ids_path, logits_path = sys.argv[1:]
ids = np.load(ids_path)
llama = Llama(path, n_ctx=ids.shape[1], logits_all=True, verbose=False)
logits = []
for row in ids.tolist():
    llama.reset()
    llama.eval(row)
    logits.append(llama.scores[: len(row)].copy())
np.save(logits_path, np.stack(logits))
"""


def _llama_logits(path: Path, ids: npt.NDArray[np.int64]) -> Array | None:
    """What llama.cpp computes for ids (B, T): logits (B, T, V); None where it crashes.

    Raises ModuleNotFoundError where `llama_cpp` is not installed, UserError where it cannot load the model.
    """
    import llama_cpp  # noqa: F401 - or say that it is missing

    with tempfile.TemporaryDirectory() as folder:
        ids_path, logits_path = Path(folder) / "ids.npy", Path(folder) / "logits.npy"
        np.save(ids_path, ids)
        command = [sys.executable, "-c", _LLAMA, str(path), str(ids_path), str(logits_path)]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode < 0 or done.returncode >= 128:  # ended by a signal, or by Windows
            return None
        if done.returncode:
            mend = f"{python()} -m pip install -U llama-cpp-python"
            raise UserError(f"llama.cpp cannot load the exported model: {mend}")
        logits: Array = np.load(logits_path)
        return logits
