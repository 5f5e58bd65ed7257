"""The export formats by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

# --format NAME -> the module of slm.export that writes it, and the ending of its file or folder
EXPORT_FORMATS: Mapping[str, tuple[str, str]] = {
    "onnx": ("onnx", ".onnx"),
    "onnx-int8": ("onnx", ".int8.onnx"),
    "onnx-int4": ("onnx", ".int4.onnx"),
    "torchscript": ("torchscript", ".torchscript.pt"),
    "torch_export": ("torch_export", ".pt2"),
    "huggingface": ("huggingface", "-huggingface"),
    "gguf": ("gguf", ".gguf"),
    "gguf-q8_0": ("gguf", ".q8_0.gguf"),
    "ctranslate2": ("ctranslate2", "-ctranslate2"),
    "ctranslate2-int8": ("ctranslate2", "-ctranslate2-int8"),
    "web": ("web", "-web"),
}


def format_list(formats: str) -> list[str]:
    """The names in `formats`, which are separated by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in formats.split(",") if name.strip()))


def format_problems(flag_name: str, formats: str) -> Iterator[str]:
    """One line for each of `formats` that is not an export format, or where there is none."""
    if not format_list(formats):
        yield f"--{flag_name} names no format: choose from {', '.join(EXPORT_FORMATS)}"
    for name in format_list(formats):
        if name not in EXPORT_FORMATS:
            near = difflib.get_close_matches(name, EXPORT_FORMATS, n=1)
            mend = f"did you mean {near[0]}?" if near else f"choose from {', '.join(EXPORT_FORMATS)}"
            yield f"--{flag_name} {name!r} is not an export format: {mend}"
