"""A file of ours with an ONNX graph: what it says of its model, its checksum, and how it is opened."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from slm.config.fields import command
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError, first_line
from slm.files import checksum
from slm.inference.onnx_graph import check_graph

METADATA, VERSION = "small-language-model", 1
# What is appended to a file of ours: one more entry of its metadata, as protobuf writes that (field 14 of the model: a
# message of 20 bytes, its key of 8 bytes, its value of 8), which any reader takes for a part of the model.
SEAL = b"\x72\x14\x0a\x08checksum\x12\x08"


def describe(tokenizer: Tokenizer, context_length: int, facts: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of an ONNX file of ours, from which `open_session` knows tokenizer, context and facts."""
    state = {
        name: [value.dtype.str, base64.b64encode(value.tobytes()).decode()] if isinstance(value, np.ndarray) else value
        for name, value in tokenizer.to_state().items()
    }
    about = {"version": VERSION, "context_length": context_length, "tokenizer": state, "facts": dict(facts)}
    return {METADATA: json.dumps(about)}


def seal(path: Path) -> None:
    """Append the file's own checksum to it."""
    value = checksum(path)
    with path.open("ab") as file:
        file.write(SEAL + value.encode())


def _check_seal(path: Path) -> bool:
    """Whether the file has a seal at its end. Raises UserError where that is not the seal of what stands before it."""
    with path.open("rb") as file:
        size = max(0, file.seek(0, os.SEEK_END) - len(SEAL) - 8)
        file.seek(size)
        end = file.read()
    if not end.startswith(SEAL):
        return False
    if end[len(SEAL) :] != checksum(path, size).encode():
        raise UserError(f"{path} is damaged, or another program has changed it: export it again")
    return True


class About(NamedTuple):
    """What a graph's inputs, outputs and metadata say of its model."""

    tokenizer: Tokenizer
    context_length: int
    facts: dict[str, Any]
    layers: int
    heads: int
    width: int  # of a head
    can_skip_logits: bool  # it has the input logits_to_keep


def open_session(path: Path, threads: int) -> tuple[onnxruntime.InferenceSession, About]:
    """The graph in a file of ours, ready to run on `threads` cores, and what the file says about its model.

    Raises UserError where there is none, or it is damaged or another program's.
    """
    if not path.is_file():
        raise UserError(f"no model {path}: make one with `{command('export')}`, or name another with --model_path")
    if not os.access(path, os.R_OK):
        raise UserError(f"cannot read {path}: permission denied")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = threads
    sealed = _check_seal(path)  # a damaged graph could crash what reads it
    check_graph(path)
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # a damaged file can fail in any part of the reader
        raise UserError(f"{path} is not an ONNX model that can be opened: {first_line(error)[:200]}") from error
    try:
        about = _about(session, path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {first_line(error)[:200]}") from error
    if not sealed:
        raise UserError(f"{path} has lost its checksum, or is of an early version: export it again")
    return session, about


def _about(session: onnxruntime.InferenceSession, path: Path) -> About:
    """What the graph says of its model. Raises UserError, or whatever else damage leads to."""
    inputs = {each.name: each.shape for each in session.get_inputs()}
    past = [name for name in inputs if name.startswith("past_key_values.")]
    missing = sorted({"input_ids", "attention_mask", "position_ids", "past_key_values.0.key"} - inputs.keys())
    if missing:
        raise UserError(f"{path} is no model of this project: its graph has no input {', '.join(missing)}")
    content = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if content is None:
        raise UserError(f"{path} holds no tokenizer: it was not written by this project")
    about = json.loads(content)
    if about["version"] != VERSION:
        raise UserError(f"{path} has format version {about['version']!r}; this program reads version {VERSION}")
    state = {
        name: np.frombuffer(base64.b64decode(value[1]), dtype=value[0]) if isinstance(value, list) else value
        for name, value in about["tokenizer"].items()
    }
    tokenizer, context_length = Tokenizer.from_state(state), int(about["context_length"])
    vocab_size = session.get_outputs()[0].shape[-1]
    if vocab_size != tokenizer.vocab_size:
        raise ValueError(f"{vocab_size} logits for {tokenizer.vocab_size} tokens")
    if context_length < 1:
        raise ValueError(f"a context of {context_length} tokens")
    _, heads, _, width = inputs["past_key_values.0.key"]
    optional = {each.name for each in session.get_overridable_initializers()}
    facts, layers = dict(about["facts"]), len(past) // 2
    return About(tokenizer, context_length, facts, layers, int(heads), int(width), "logits_to_keep" in optional)
