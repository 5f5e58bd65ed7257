"""Prompts in, tokens out, one of each at a time, at any length. Works on ids and an engine, and knows no framework."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import compress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slm.inference.continuation import Continuation
from slm.inference.sampling import Logits

Ids = npt.NDArray[np.integer[Any]]


class Engine(Protocol):
    """A model that reads a batch of sequences, each of a length of its own, and computes what may come next.

    A sequence holds at most context_length tokens; parameters: numbers that the model has learned. B sequences in the
    batch, T tokens, V vocabulary.
    """

    context_length: int
    parameters: int

    def prefill(self, prompts: Sequence[Ids]) -> Logits:
        """Read new sequences of at least one token and add them to the batch's end: their next logits, (new, V)."""

    def decode(self, ids: Ids) -> list[Logits]:
        """Read one more token of each sequence, ids (B,): the next logits of each, (V,)."""

    def keep(self, rows: Sequence[int]) -> None:
        """Make the batch of the sequences in these places, in this order; one may be taken several times, or none."""

    def all_logits(self, ids: Ids) -> Logits:
        """The logits of each next token of whole sequences: ids (B, T) -> (B, T, V). The batch stays as it is."""


class Batch:
    """Texts continued together. Any may join or leave between two steps, and what the others say stays the same.

    A model sees context_length tokens: of a longer prompt it reads the last ones, and once its window is full it goes
    on from the window's second half.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self._read: list[Continuation] = []  # in the order of the engine's batch
        self._new: list[Continuation] = []
        self._failed: list[Continuation] = []  # in this step
        engine.keep([])

    def __len__(self) -> int:
        return sum(not each.ended for each in (*self._read, *self._new))

    def add(self, new: Iterable[Continuation]) -> None:
        """Let these join at the next step; texts that were paused go on where they were."""
        for each in new:
            each.begin = max(each.begin, len(each.ids) - self.engine.context_length)
            self._new.append(each)

    def pause(self, texts: Collection[Continuation]) -> None:
        """Take these out of the batch, for others to have their places."""
        stays = [each not in texts for each in self._read]
        self.engine.keep(np.flatnonzero(stays).tolist())
        self._read = list(compress(self._read, stays))
        for each in texts:
            self._shift(each)

    def _shift(self, text: Continuation) -> None:
        """Let a window that is too long begin later."""
        if len(text.ids) - text.begin > self.engine.context_length:
            text.begin = len(text.ids) - max(1, self.engine.context_length // 2)

    def step(self) -> list[Continuation]:
        """Add the next token to each text that has not ended. Returns those that grew or failed.

        Where the engine fails to go on, all of them fail with its error, and the batch is empty. Where it cannot read
        a text that joins, that one fails.
        """
        try:
            logits = self._advance()
        except BaseException as error:
            failed = [*self._read, *self._new]
            self._read, self._new, self._failed = [], [], []
            for each in failed:
                each.fail(error if isinstance(error, Exception) else RuntimeError("interrupted"))
            self.engine.keep([])
            if not isinstance(error, Exception):
                raise
            return failed
        for each, row in zip(self._read, logits, strict=True):
            try:
                each.grow(row)
            except Exception as error:  # noqa: PERF203 - the others go on
                each.fail(error)
        failed, self._failed = self._failed, []
        return [*self._read, *failed]

    def _advance(self) -> list[Logits]:
        """Let the engine read each text's last token, or its window where the text is new or has outgrown it.

        Returns the next logits of all, (V,) each, in the order of `_read`.
        """
        context = self.engine.context_length
        outgrown = [each for each in self._read if not each.ended and len(each.ids) - each.begin > context]
        stays = [not each.ended and len(each.ids) - each.begin <= context for each in self._read]
        if not all(stays):
            self.engine.keep(np.flatnonzero(stays).tolist())
            self._read = list(compress(self._read, stays))
        logits = self.engine.decode(np.array([each.ids[-1] for each in self._read])) if self._read else []
        for each in outgrown:
            self._shift(each)
        joining = [*outgrown, *(each for each in self._new if not each.ended)]
        self._new = []
        return [*logits, *self._join(joining)] if joining else logits

    def _join(self, joining: Sequence[Continuation]) -> list[Logits]:
        """Let these join together or, where that fails, each that can: their next logits, (V,) each."""
        before = len(self._read)
        try:
            logits = list(self._prefill(joining))
        except Exception as error:
            self.engine.keep(range(before))
            if len(joining) == 1:
                joining[0].fail(error)
                self._failed.append(joining[0])
                return []
            return [row for each in joining for row in self._join([each])]
        self._read += joining
        return logits

    def _prefill(self, joining: Sequence[Continuation]) -> Logits:
        """Let the engine read the windows of these texts, equal ones once: their next logits, (joining, V)."""
        windows = [tuple(each.ids[each.begin :]) for each in joining]
        distinct = list(dict.fromkeys(windows))  # samples of one prompt
        logits = self.engine.prefill([np.array(window) for window in distinct])
        if len(distinct) == len(windows):
            return logits
        places = [distinct.index(window) for window in windows]
        before = len(self._read)
        self.engine.keep([*range(before), *(before + place for place in places)])
        return logits[places]
