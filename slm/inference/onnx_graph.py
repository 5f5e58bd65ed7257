"""What a graph may consist of: an .onnx file may come from a stranger, and ONNX Runtime runs whatever is in it.

The file is protobuf (onnx.proto3 of the ONNX project). It is walked here without reading its weights, since the package
`onnx` is not needed to generate.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from slm.errors import UserError

# The operators that slm/export/onnx.py writes; none has a graph of its own.
OPERATORS = frozenset({
    "Add", "And", "Cast", "Concat", "Gather", "Gelu", "Gemm", "LayerNormalization", "LessOrEqual", "MatMul", "Mul",
    "Neg", "Range", "Reshape", "Shape", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    "Where", "com.microsoft.MatMulNBits",
})  # fmt: skip
# Numbers of fields: model.graph; graph.node and .initializer; node.op_type, .domain and .attribute, of which may be
# graphs; tensor.external_data.
GRAPH, NODE, INITIALIZER, OP_TYPE, ATTRIBUTE, DOMAIN, FUNCTIONS, EXTERNAL = 7, 1, 5, 4, 5, 7, 25, 13
SUBGRAPHS = (6, 11)


def check_graph(path: Path) -> None:
    """Raises UserError where the file's graph has operators that our exports do not have, or data in other files."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            foreign = _foreign(data)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not an ONNX model that can be opened: {error}") from error
    if foreign:
        raise UserError(f"{path} is no model of this project: its graph has {foreign}, which no export writes")


def _foreign(data: mmap.mmap) -> str:
    """What is in a model that no export of ours has; empty where there is nothing."""
    for number, start, end in _fields(data, 0, len(data)):
        if number == FUNCTIONS:
            return "functions of its own"
        if number != GRAPH:
            continue
        for part, start_of_part, end_of_part in _fields(data, start, end):
            if part == NODE:
                name = _operator(data, start_of_part, end_of_part)
                if name not in OPERATORS:
                    return f"the operator {name[:60]!r}" if name else "an operator with a graph of its own"
            if part == INITIALIZER and EXTERNAL in {field for field, _, _ in _fields(data, start_of_part, end_of_part)}:
                return "weights in another file"
    return ""


def _operator(data: mmap.mmap, start: int, end: int) -> str:
    """The name of a node's operator, behind that of its domain where it has one; one with a graph has no name."""
    name, domain = "", ""
    for number, begin, stop in _fields(data, start, end):
        if number == OP_TYPE:
            name = data[begin:stop].decode("utf-8", "replace")
        elif number == DOMAIN:
            domain = data[begin:stop].decode("utf-8", "replace")
        elif number == ATTRIBUTE and any(field in SUBGRAPHS for field, _, _ in _fields(data, begin, stop)):
            return ""
    return f"{domain}.{name}" if domain not in ("", "ai.onnx") else name


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message: number, and where the value begins and ends; of numbers the value is left out."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, stop = _varint(data, at)
        elif kind == 1:
            stop = at + 8
        elif kind == 5:
            stop = at + 4
        elif kind == 2:
            size, at = _varint(data, at)
            stop = at + size
        else:
            raise ValueError("a field of an unknown kind")
        if stop > end:
            raise ValueError("a field that is longer than the file")
        yield key >> 3, at, stop
        at = stop


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where what follows it begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of too many bytes")
