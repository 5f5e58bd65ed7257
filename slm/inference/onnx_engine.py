"""An exported model as an engine, in ONNX Runtime; imports no PyTorch.

Legend: B sequences, T tokens, P tokens in the cache, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnxruntime import OrtValue

from slm.cores import fast_threads
from slm.errors import UserError, first_line
from slm.inference.generator import Ids
from slm.inference.onnx_file import open_session
from slm.inference.sampling import Logits


class OnnxEngine:
    """A graph as slm/export/onnx.py writes it. tokenizer, facts, context_length: what its metadata say.

    parameters: as PyTorch counts those of a model with biases, which the graph always has.

    threads: cores to compute on; default: what is fast for one sequence. Raises UserError where the file is none,
    damaged or another model.
    """

    def __init__(self, path: Path, *, threads: int | None = None):
        self._path = path
        self.session, about = open_session(path, threads or fast_threads(1))
        self.tokenizer, self.context_length, self.facts = about.tokenizer, about.context_length, about.facts
        self._heads, self._width = about.heads, about.width
        C, layers = self._heads * self._width, about.layers
        rows = self.tokenizer.vocab_size + self.context_length + 2
        self.parameters = rows * C + layers * (12 * C * C + 13 * C)  # of a GPT-2
        self._past = [f"past_key_values.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._past)]
        self._last_only = {"logits_to_keep": np.ones(1, dtype=np.int64)} if about.can_skip_logits else {}
        # Of each sequence the cache that it is in, and its row there; `_together` brings them together for a token.
        self._batch: list[tuple[_Cache, int]] = []
        self._room = [np.empty(0, dtype=np.float32) for _ in self._past]  # to do so in, used again and again

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

        Raises UserError where the file computes those of the last token only, as one for browsers does.
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

        That is the cache of the first sequence where the others fit into it: who leaves leaves a row, which the next
        one who comes is copied into. Else all are copied into a new one.
        """
        cache = self._batch[0][0]
        if not self._fit_into(cache):
            return self._put_together(), list(range(len(self._batch)))
        taken = {row for of, row in self._batch if of is cache}
        free = [row for row in range(len(cache.lengths)) if row not in taken]
        rows = []
        for of, row in self._batch:
            if of is not cache:
                target, length = free.pop(), of.lengths[row]
                for to, source in zip(cache.arrays, of.arrays, strict=True):
                    to[target, :, cache.width - length :] = source[row, :, of.width - length :]
                cache.lengths[target] = length
                row = target
            rows.append(row)
        cache.lengths[free] = 0
        return cache, rows

    def _fit_into(self, cache: _Cache) -> bool:
        """Whether the batch's sequences find room in `cache`, and it is not much larger than they need."""
        inside = [row for of, row in self._batch if of is cache]
        longest = max(int(of.lengths[row]) for of, row in self._batch)
        return (
            len(set(inside)) == len(inside)  # none is there twice
            and 3 * len(cache.lengths) <= 4 * len(self._batch) <= 4 * len(cache.lengths)
            and 3 * cache.width <= 4 * longest <= 4 * cache.width
            and cache.writable
        )

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
            raise UserError(f"{self._path} cannot be run: {first_line(error)[:200]}") from error
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
