"""ONNX: one graph that reads a prompt and then one token after another, keeping keys and values (the KV cache).

Inputs and outputs have the names and shapes that Hugging Face Optimum gives a GPT-2 decoder, so programs written for
those can run it:

  input_ids (B, T), attention_mask (B, P + T), position_ids (B, T): int64
  past_key_values.N.key and .value (B, H, P, D); P is 0 at first
  -> logits (B, T, V), present.N.key and .value (B, H, P + T, D)

attention_mask is 0 where a row is padded, on whichever side. One more input, `logits_to_keep` (1,) int64, has a
default: 0 is for the logits of all T positions, n > 0 for those of the last n. The metadata hold the tokenizer, the
context length and the facts of the training; their last entry is a checksum of all that stands before it in the file.

With 8 or 4 bits the matrices are rounded in blocks and multiplied by ONNX Runtime's MatMulNBits. The output layer,
which is also the token embedding, keeps 8 bits in both: at 4 the loss suffers most there.

For browsers (slm/export/web.py) the matrices have 8 bits in the file, and constant nodes turn them back into floats
when it is opened: in WebAssembly MatMulNBits is far slower than products of floats. Of the logits that graph gives the
last token's only, as ONNX Runtime's JavaScript has no inputs with a default.

The graph is written node by node: tracing the network would need as much code to get these names and shapes right.

Legend: B sequences, T new tokens, P tokens in the cache, S = P + T, C width, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm import __version__
from slm.checkpoint.file import Checkpoint
from slm.config.model import ModelConfig
from slm.errors import UserError
from slm.export.parts import Array, compare, compare_distributions, expected_logits, random_ids, weights

BITS = {"onnx": 32, "onnx-int8": 8, "onnx-int4": 4, "web": 8}
HEAD_BITS = 8
TOLERANCE = {8: 0.02, 4: 0.2}  # nats a token
OPSET, IR_VERSION = 20, 9  # what ONNX Runtime reads since early 2024 (1.17; 8-bit MatMulNBits since 1.22)
MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
INT64_MAX = 2**63 - 1
LARGEST = 2**31 - 2**20  # bytes that protobuf puts into one file, and room for the metadata


def write(loaded: Checkpoint, path: Path, format: str) -> None:
    """Write the graph. Raises ModuleNotFoundError without `onnx`, UserError for a model that is too large."""
    import onnx

    from slm.inference.onnx_file import describe, seal

    model = _Graph(loaded.config, weights(loaded), BITS[format], browser=format == "web").model()
    if model.ByteSize() > LARGEST:
        raise UserError(
            f"the model has {model.ByteSize() / 1e9:.1f} GB, one file holds {LARGEST / 1e9:.1f}: take onnx-int8"
        )
    onnx.helper.set_model_props(model, describe(loaded.tokenizer, loaded.config.context_length, loaded.facts))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    seal(path)


def check(loaded: Checkpoint, path: Path, format: str) -> str:
    """Compare with PyTorch in ONNX Runtime: sequences of several lengths, a token after each; and all read at once."""
    from slm.inference.onnx_engine import OnnxEngine

    engine = OnnxEngine(path)
    ids = random_ids(loaded)
    expected = expected_logits(loaded, ids)  # (B, T, V)
    rows = np.arange(len(ids))
    lengths = np.maximum(1, ids.shape[1] - 1 - rows)
    actual = [engine.prefill([row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)])]
    wanted = [expected[rows, lengths - 1]]
    if ids.shape[1] > 1:
        actual.append(np.stack(engine.decode(ids[rows, lengths])))
        wanted.append(expected[rows, lengths])
    if format != "web":
        actual.append(engine.all_logits(ids).reshape(-1, expected.shape[-1]))
        wanted.append(expected.reshape(-1, expected.shape[-1]))
    if BITS[format] in TOLERANCE:
        return compare_distributions(np.concatenate(actual), np.concatenate(wanted), TOLERANCE[BITS[format]])
    return compare(np.concatenate(actual), np.concatenate(wanted))


class _Graph:
    """The nodes and constants of one model, whose matrices have `bits` bits: 32, 8 or 4; for a `browser` with 8."""

    def __init__(self, config: ModelConfig, weights: dict[str, Array], bits: int, browser: bool = False):
        self.config, self.weights, self.bits, self.browser = config, weights, bits, browser
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def op(self, kind: str, *inputs: str, outputs: tuple[str, ...] = (), domain: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its first output; a name given in `outputs` becomes its."""
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        node = helper.make_node(kind, inputs, outputs or (name,), name=name, domain=domain, **attributes)
        self.nodes.append(node)
        return str(node.output[0])

    def constant(self, value: Any, dtype: type[np.generic] = np.int64, name: str = "") -> str:
        """The name of a constant, which is stored once."""
        array = np.asarray(value, dtype)
        name = name or f"{array.dtype.name}_{array.tolist()}".replace(" ", "")
        self.constants[name] = array
        return name

    def model(self) -> Any:
        """The whole as an onnx.ModelProto."""
        from onnx import TensorProto, helper, numpy_helper

        c = self.config
        self.network()
        ids, floats = TensorProto.INT64, TensorProto.FLOAT
        batch, length, total = "batch_size", "sequence_length", "past_sequence_length + sequence_length"
        shape: list[str | int | None]
        inputs = [
            helper.make_tensor_value_info("input_ids", ids, [batch, length]),
            helper.make_tensor_value_info("attention_mask", ids, [batch, total]),
            helper.make_tensor_value_info("position_ids", ids, [batch, length]),
        ]
        if not self.browser:
            inputs.append(helper.make_tensor_value_info("logits_to_keep", ids, [1]))
        outputs = [helper.make_tensor_value_info("logits", floats, [batch, "logits_length", c.vocab_size])]
        for layer in range(c.n_layer):
            for kind in ("key", "value"):
                shape = [batch, c.n_head, "past_sequence_length", c.n_embd // c.n_head]
                inputs.append(helper.make_tensor_value_info(f"past_key_values.{layer}.{kind}", floats, shape))
                shape[2] = total
                outputs.append(helper.make_tensor_value_info(f"present.{layer}.{kind}", floats, shape))
        self.constant([int(self.browser)], name="logits_to_keep")  # the input's default
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        own = self.bits < 32 and not self.browser
        domains = [helper.make_opsetid("", OPSET)] + ([helper.make_opsetid(MICROSOFT, 1)] if own else [])
        return helper.make_model(
            helper.make_graph(self.nodes, "gpt2", inputs, outputs, constants),
            opset_imports=domains,
            ir_version=IR_VERSION,
            producer_name="small-language-model",
            producer_version=__version__,
        )

    def network(self) -> None:
        """As slm/model/gpt.py, top to bottom."""
        position = self.constant(self.weights["position_embedding.weight"], np.float32, "position_embedding")
        x = self.op("Add", self.embedding(), self.op("Gather", position, "position_ids"))  # (B, T, C)
        bias = self.attention_bias()
        for layer in range(self.config.n_layer):
            block = f"blocks.{layer}"
            x = self.op("Add", x, self.attention(self.norm(x, f"{block}.attention_norm"), layer, bias))
            h = self.op("Gelu", self.linear(self.norm(x, f"{block}.mlp_norm"), f"{block}.mlp.up"), approximate="tanh")
            x = self.op("Add", x, self.linear(h, f"{block}.mlp.down"))
        first = self.op("Neg", "logits_to_keep")  # -0, the default, is the very first
        x = self.op("Slice", x, first, self.constant([INT64_MAX]), self.constant([1]))
        self.head(self.norm(x, "final_norm"))

    def attention_bias(self) -> str:
        """(B, 1, T, S): 0 where a token may look, a very negative number where not: behind itself, or at padding."""
        T, S = self.op("Shape", "input_ids", start=1, end=2), self.op("Shape", "attention_mask", start=1, end=2)
        zero, one = self.constant(0), self.constant(1)
        end = self.op("Squeeze", S)
        columns = self.op("Range", zero, end, one)  # (S,)
        own = self.op("Range", self.op("Squeeze", self.op("Sub", S, T)), end, one)  # (T,): each new token's own column
        causal = self.op("LessOrEqual", columns, self.op("Unsqueeze", own, self.constant([1])))  # (T, S)
        real = self.op("Unsqueeze", self.op("Cast", "attention_mask", to=9), self.constant([1, 2]))  # (B, 1, 1, S)
        visible = self.op("And", causal, real)
        return self.op("Where", visible, self.constant(0, np.float32), self.constant(-1e9, np.float32))

    def attention(self, x: str, layer: int, bias: str) -> str:
        """(B, T, C) -> (B, T, C), with the cache's keys and values before the new ones."""
        H, D = self.config.n_head, self.config.n_embd // self.config.n_head
        parts = tuple(f"{name}_{layer}" for name in "qkv")
        self.op("Split", self.linear(x, f"blocks.{layer}.attention.qkv"), outputs=parts, axis=-1, num_outputs=3)
        heads = self.constant([0, 0, H, D])
        q, k, v = (self.op("Transpose", self.op("Reshape", part, heads), perm=[0, 2, 1, 3]) for part in parts)
        k = self.op("Concat", f"past_key_values.{layer}.key", k, outputs=(f"present.{layer}.key",), axis=2)
        v = self.op("Concat", f"past_key_values.{layer}.value", v, outputs=(f"present.{layer}.value",), axis=2)
        q = self.op("Mul", q, self.constant(1 / math.sqrt(D), np.float32))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))  # (B, H, T, S)
        y = self.op("MatMul", self.op("Softmax", self.op("Add", scores, bias), axis=-1), v)  # (B, H, T, D)
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), self.constant([0, 0, H * D]))
        return self.linear(y, f"blocks.{layer}.attention.projection")

    def norm(self, x: str, name: str) -> str:
        scale = self.constant(self.weights[f"{name}.weight"], np.float32, f"{name}.weight")
        bias = self.constant(self.weights[f"{name}.bias"], np.float32, f"{name}.bias")
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)

    def linear(self, x: str, name: str) -> str:
        weight = self.weights[f"{name}.weight"]  # (out, in)
        bias = self.constant(self.weights[f"{name}.bias"], np.float32, f"{name}.bias")
        if self.browser:
            matrix = self.op("Transpose", self.dequantised(name), perm=[1, 0])
            return self.op("Add", self.op("MatMul", x, matrix), bias)
        if self.bits < 32:
            return self.quantised(x, name, self.bits, bias)
        return self.op("Add", self.op("MatMul", x, self.constant(weight.T, np.float32, f"{name}.weight")), bias)

    def head(self, x: str) -> None:
        """(B, T, C) -> logits (B, T, V), by the token embedding's own table."""
        V, C = self.weights["token_embedding.weight"].shape
        if self.bits < 32 and not self.browser:
            self.quantised(x, "token_embedding", HEAD_BITS, output="logits")
            return
        logits = self.op("Gemm", self.op("Reshape", x, self.constant([-1, C])), "token_embedding", transB=1)
        shape = self.op("Concat", self.op("Shape", x, start=0, end=2), self.constant([V]), axis=0)
        self.op("Reshape", logits, shape, outputs=("logits",))

    def embedding(self) -> str:
        """input_ids (B, T) -> (B, T, C)."""
        table = self.weights["token_embedding.weight"]
        if self.bits == 32:
            return self.op("Gather", self.constant(table, np.float32, "token_embedding"), "input_ids")
        if self.browser:
            return self.op("Gather", self.dequantised("token_embedding"), "input_ids")
        self.quantise("token_embedding", HEAD_BITS)
        rounded = self.op(
            "Cast", self.op("Gather", "token_embedding.rounded", "input_ids"), to=1
        )  # (B, T, blocks, size)
        centred = self.op("Sub", rounded, self.constant(2 ** (HEAD_BITS - 1), np.float32))
        scale = self.op("Unsqueeze", self.op("Gather", "token_embedding.scale", "input_ids"), self.constant([-1]))
        x = self.op("Reshape", self.op("Mul", centred, scale), self.constant([0, 0, -1]))
        return self.op("Slice", x, self.constant([0]), self.constant([table.shape[1]]), self.constant([2]))

    def quantised(self, x: str, name: str, bits: int, *bias: str, output: str = "") -> str:
        """x times the matrix `name`, rounded to `bits`, plus `bias`."""
        size = self.quantise(name, bits)
        rows, columns = self.weights[f"{name}.weight"].shape
        return self.op(
            "MatMulNBits", x, f"{name}.rounded", f"{name}.scale", *(("", "", *bias) if bias else ()),
            outputs=(output,) if output else (), domain=MICROSOFT,
            K=columns, N=rows, bits=bits, block_size=size, accuracy_level=4,  # 4: int8 products
        )  # fmt: skip

    def dequantised(self, name: str) -> str:
        """The matrix `name`, (out, in), rounded to 8 bits in the file and floats once it is opened."""
        self.quantise(name, HEAD_BITS)
        rows, columns = self.weights[f"{name}.weight"].shape
        rounded = self.op("Cast", f"{name}.rounded", to=1)  # (N, blocks, size)
        centred = self.op("Sub", rounded, self.constant(2 ** (HEAD_BITS - 1), np.float32))
        scaled = self.op("Mul", centred, self.op("Unsqueeze", f"{name}.scale", self.constant([-1])))
        flat = self.op("Reshape", scaled, self.constant([rows, -1]))
        ends = self.constant([0]), self.constant([columns]), self.constant([1])
        return self.op("Slice", flat, *ends, outputs=(name,))

    def quantise(self, name: str, bits: int) -> int:
        """Add the constants `name`.rounded and `name`.scale; returns the block size."""
        weight = self.weights[f"{name}.weight"]
        size = block_size(weight.shape[1], bits)
        rounded, scale = quantise(weight, bits, size)
        self.constant(rounded, np.uint8, f"{name}.rounded")
        self.constant(scale, np.float32, f"{name}.scale")
        return size


def block_size(columns: int, bits: int) -> int:
    """Weights that share a scale: with 8 bits up to 128 where that divides the row, with 4 bits 32."""
    return next((size for size in (128, 64) if bits == 8 and columns % size == 0), 32)


def quantise(weight: Array, bits: int, size: int) -> tuple[npt.NDArray[np.uint8], Array]:
    """Round a matrix (N, K) to unsigned integers around 2^(bits-1), in blocks of `size` along K with a scale each.

    Returns the integers, (N, blocks, size * bits / 8), two in a byte with 4 bits, the first in the lower half; and the
    scales (N, blocks). The last block is padded. A weight is about (integer - 2^(bits-1)) * scale.
    """
    N, K = weight.shape
    blocks = -(-K // size)
    padded = np.zeros((N, blocks * size), dtype=np.float32)
    padded[:, :K] = weight
    padded = padded.reshape(N, blocks, size)
    largest = np.abs(padded).max(axis=2, keepdims=True)
    scale = np.where(largest == 0, 1, largest / (2 ** (bits - 1) - 1)).astype(np.float32)
    whole = (np.rint(padded / scale) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        whole = whole[:, :, 0::2] | (whole[:, :, 1::2] << 4)
    return whole, scale[:, :, 0]
