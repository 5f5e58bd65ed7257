"""An exported model as an engine, in ONNX Runtime; imports no PyTorch.

Legend: B sequences, T tokens, P tokens in the cache, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime import OrtValue

from slm.cores import fast_threads
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.files import checksum
from slm.inference.generator import Ids
from slm.inference.sampling import Logits

METADATA, VERSION = "small-language-model", 1
# What is appended to a file of ours: one more entry of its metadata, as protobuf writes that (field 14 of the model: a
# message of 20 bytes, its key of 8 bytes, its value of 8), which any reader takes for a part of the model.
SEAL = b"\x72\x14\x0a\x08checksum\x12\x08"


def describe(tokenizer: Tokenizer, context_length: int, facts: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of an ONNX file of ours, from which `OnnxEngine` knows tokenizer, context and facts."""
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


class OnnxEngine:
    """A graph as slm/export/onnx.py writes it. tokenizer, facts, context_length: what its metadata say.

    parameters: as PyTorch counts those of a model with biases, which the graph always has.

    threads: cores to compute on; default: what is fast for one sequence. Raises UserError where the file is none,
    damaged or another model.
    """

    def __init__(self, path: Path, *, threads: int | None = None):
        self._path = path
        if not path.is_file():
            raise UserError(f"no model {path}: make one with `python export.py`, or name another with --model_path")
        if not os.access(path, os.R_OK):
            raise UserError(f"cannot read {path}: permission denied")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = threads or fast_threads(1)
        sealed = _check_seal(path)  # a damaged graph could crash what reads it
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # a damaged file can fail in any part of the reader
            raise UserError(f"{path} is not an ONNX model that can be opened: {_first_line(error)}") from error
        try:
            self._read_description()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path} is damaged: {type(error).__name__}: {_first_line(error)}") from error
        if not sealed:
            raise UserError(f"{path} has lost its checksum, or is of an early version: export it again")
        # Of each sequence the cache that it is in, and its row there; `_together` brings them together for a token.
        self._batch: list[tuple[_Cache, int]] = []
        self._room = [np.empty(0, dtype=np.float32) for _ in self._past]  # to do so in, used again and again

    def _read_description(self) -> None:
        """What inputs, outputs and metadata say. Raises UserError, or whatever else damage leads to."""
        path, session = self._path, self.session
        inputs = {each.name: each.shape for each in session.get_inputs()}
        self._past = [name for name in inputs if name.startswith("past_key_values.")]
        missing = {"input_ids", "attention_mask", "position_ids"} - inputs.keys()
        if missing or not self._past:
            lacking = sorted(missing) or ["past_key_values.0.key"]
            raise UserError(f"{path} is no model of this project: its graph has no input {', '.join(lacking)}")
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
        self.tokenizer = Tokenizer.from_state(state)
        self.context_length, self.facts = int(about["context_length"]), dict(about["facts"])
        vocab_size = session.get_outputs()[0].shape[-1]
        if vocab_size != self.tokenizer.vocab_size:
            raise ValueError(f"{vocab_size} logits for {self.tokenizer.vocab_size} tokens")
        if self.context_length < 1:
            raise ValueError(f"a context of {self.context_length} tokens")
        _, heads, _, width = inputs[self._past[0]]
        self._heads, self._width = int(heads), int(width)
        C, layers = self._heads * self._width, len(self._past) // 2
        self.parameters = (vocab_size + self.context_length + 2) * C + layers * (12 * C * C + 13 * C)  # of a GPT-2
        optional = {each.name for each in session.get_overridable_initializers()}
        self._last_only = {"logits_to_keep": np.ones(1, dtype=np.int64)} if "logits_to_keep" in optional else {}
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._past)]

    def prefill(self, prompts: Sequence[Ids]) -> Logits:
        """Read new sequences of at least one token and add them to the batch's end: their next logits, (new, V).

        Those of a length are read together.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        logits: list[Logits] = []
        order: list[int] = []
        new: list[tuple[_Cache, int]] = []
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length).tolist()
            read, cache = self._run(np.stack([prompts[row] for row in rows]), self._empty(len(rows)), self._last_only)
            logits.append(read[:, -1])
            order += rows
            new += [(cache, row) for row in range(len(rows))]
        places = np.argsort(order).tolist()
        self._batch += [new[place] for place in places]
        return logits[0] if len(logits) == 1 else np.concatenate(logits)[places]

    def decode(self, ids: Ids) -> list[Logits]:
        """Read one more token of each sequence, ids (B,): the next logits of each, (V,)."""
        cache, rows = self._together()
        fed = np.zeros(len(cache.lengths), dtype=np.int64)
        fed[rows] = ids
        logits, cache = self._run(fed[:, None], cache, self._last_only)
        self._batch = [(cache, row) for row in rows]
        return [logits[row, -1] for row in rows]

    def keep(self, rows: Sequence[int]) -> None:
        """Make the batch of the sequences in these places, in this order."""
        self._batch = [self._batch[row] for row in rows]

    def all_logits(self, ids: Ids) -> Logits:
        """The logits of each next token of whole sequences: ids (B, T) -> (B, T, V). The batch stays as it is.

        Raises UserError where the file tells those of the last token only, as one for browsers does.
        """
        logits, _ = self._run(ids, self._empty(len(ids)), {})
        if logits.shape[1] != ids.shape[1]:
            raise UserError(f"{self._path} is for a browser, and only writes: take the model it was exported from")
        return logits

    def loss(self, ids: Ids, targets: Ids) -> tuple[float, int]:
        """The summed loss in nats and the number of tokens guessed right; ids, targets (B, T), below 0 not counted."""
        nats, correct = 0.0, 0
        for row, target in zip(ids, targets, strict=True):  # a row at a time: all logits of a batch would be large
            counted = target >= 0
            logits, right = self.all_logits(row[None])[0][counted], target[counted, None]
            top = logits.max(axis=1, keepdims=True)
            log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1, dtype=np.float64))
            nats += float((log_sum - np.take_along_axis(logits, right, axis=1)[:, 0]).sum())
            correct += int((logits.argmax(axis=1) == right[:, 0]).sum())
        return nats, correct

    def _together(self) -> tuple[_Cache, list[int]]:
        """One cache that has all sequences of the batch, and the row of each; rows that are nobody's have length 0.

        While at least three quarters of it are in use, the cache of the first sequence is that: who leaves leaves a
        row, which the next one who comes is written into. Else all is put together anew.
        """
        cache = self._batch[0][0]
        rows = [row if of is cache else -1 for of, row in self._batch]
        free = sorted(set(range(len(cache.lengths))) - set(rows))
        longest = max(int(of.lengths[row]) for of, row in self._batch)
        in_use = len(self._batch) - rows.count(-1) + len(free) == len(cache.lengths)  # false where one is there twice
        full = 4 * len(self._batch) >= 3 * len(cache.lengths) and 4 * longest >= 3 * cache.width
        if not (in_use and full and rows.count(-1) <= len(free) and longest <= cache.width and cache.writable):
            return self._put_together(), list(range(len(self._batch)))
        for place, (of, row) in enumerate(self._batch):
            if rows[place] == -1:
                rows[place] = free.pop()
                length = cache.lengths[rows[place]] = of.lengths[row]
                for target, source in zip(cache.arrays, of.arrays, strict=True):
                    target[rows[place], :, cache.width - length :] = source[row, :, of.width - length :]
        cache.lengths[free] = 0
        return cache, rows

    def _put_together(self) -> _Cache:
        """A new cache of the batch's sequences, in their order."""
        lengths = np.array([cache.lengths[row] for cache, row in self._batch])
        longest = int(lengths.max())
        shape = (len(lengths), self._heads, longest, self._width)
        values = []
        for layer, room in enumerate(self._room):
            if room.size < math.prod(shape):
                room = self._room[layer] = np.empty(math.prod(shape), dtype=np.float32)
            whole = room[: math.prod(shape)].reshape(shape)
            for place, (cache, row) in enumerate(self._batch):
                length = lengths[place]
                whole[place, :, : longest - length] = 0
                whole[place, :, longest - length :] = cache.arrays[layer][row, :, cache.width - length :]
            values.append(OrtValue.ortvalue_from_numpy(whole))
        return _Cache(lengths, values)

    def _run(self, ids: Ids, cache: _Cache, options: Mapping[str, Ids]) -> tuple[Logits, _Cache]:
        T = ids.shape[1]
        total = cache.width + T
        inputs = {
            "input_ids": ids.astype(np.int64),
            "attention_mask": (np.arange(total) >= cache.width - cache.lengths[:, None]).astype(np.int64),
            "position_ids": cache.lengths[:, None] + np.arange(T),
            **options,
        }
        feeds = {name: OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
        feeds.update(zip(self._past, cache.values, strict=True))
        try:
            logits, *present = self.session.run_with_ort_values(self._outputs, feeds)
        except Exception as error:
            raise UserError(f"{self._path} cannot be run: {_first_line(error)}") from error
        return logits.numpy(), _Cache(cache.lengths + T, present)

    def _empty(self, batch_size: int) -> _Cache:
        value = np.zeros((batch_size, self._heads, 0, self._width), dtype=np.float32)
        return _Cache(np.zeros(batch_size, dtype=np.int64), [OrtValue.ortvalue_from_numpy(value) for _ in self._past])


class _Cache:
    """Keys and values of B sequences, an OrtValue (B, H, P, D) for each; a shorter sequence has padding before it."""

    def __init__(self, lengths: Ids, values: list[OrtValue]):
        self.lengths, self.values = lengths, values
        self.width = int(values[0].shape()[2])  # P

    @functools.cached_property
    def arrays(self) -> list[npt.NDArray[np.float32]]:
        """The values for NumPy: the same memory, where ONNX Runtime is new enough."""
        return [value.numpy() for value in self.values]

    @property
    def writable(self) -> bool:
        """Whether what is written into `arrays` is written into `values`."""
        return all(array.ctypes.data == value.data_ptr() for array, value in zip(self.arrays, self.values, strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
