"""Continuous batching: one thread owns the engine, and requests join and leave its batch between any two tokens.

A request lives in the event loop, the batch in the thread. What passes between them is a queue under one lock, the flag
`ended` of a text that nobody waits for any more, and one call into the event loop for each step of the batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from slm.errors import UserError
from slm.inference.generator import Batch, Continuation, Engine, Token, explained
from slm.inference.text import Growing, TextModel

READ_AT_ONCE = 512  # prompt tokens that are read between two steps, so that texts which are being written do not halt

log = logging.getLogger(__name__)


class Event(NamedTuple):
    """What was added to a text of a request: some characters, or none yet, and the tokens that made them."""

    number: int  # of the text
    text: str
    tokens: Sequence[Token]
    finish_reason: Literal["stop", "length"] | None  # not None in a text's last event
    echoed: bool = False  # it is the prompt


@dataclass(eq=False)
class Text:
    """One of the texts that a request asks for.

    echo: the prompt, where that shall come first. scored_from: the prompt's first token to tell with its probability.
    """

    continuation: Continuation
    growing: Growing
    echo: str | None = None
    scored_from: int | None = None


class Job:
    """A request, as the event loop sees it: its events arrive in order, until all its texts are finished."""

    def __init__(self, texts: Sequence[Text]):
        self.texts = texts
        self._unfinished = len(texts)
        self._events: list[Event] = []
        self._error: Exception | None = None
        self._arrived = asyncio.Event()

    async def events(self) -> AsyncIterator[list[Event]]:
        """Those that arrived since the last time, at least one. Raises what `fail` was given."""
        while self._unfinished or self._events:
            await self._arrived.wait()
            self._arrived.clear()
            if self._error is not None:
                raise self._error
            events, self._events = self._events, []
            yield events

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        self._unfinished -= event.finish_reason is not None
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """End the request with an error, the first one given."""
        self._error = self._error or error
        self._arrived.set()


class Full(Exception):
    """As many requests wait as may."""


class Failed(Exception):
    """The model cannot be run, or a defect of the program."""


class Batcher:
    """Writes the texts of all jobs, up to `max_batch` at a time; up to `max_queue` jobs may wait for their places.

    What a text says does not depend on the others. `start` and `close` are called by the event loop, as all else.
    """

    def __init__(self, model: TextModel, *, max_batch: int, max_queue: int):
        self._model, self._max_batch, self._max_queue = model, max_batch, max_queue
        self._changed = threading.Condition()  # guards the three below
        self._waiting: deque[tuple[Job, deque[tuple[int, Text]]]] = deque()  # texts of each that have no place yet
        self._running: dict[Continuation, tuple[Job, int, Text]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="batcher", daemon=True)

    def start(self) -> None:
        """Begin to write, for the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Stop after the token that is being computed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Jobs of which a text has no place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Texts that are being written."""
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Let the job's texts be written, after those of the jobs before it. Raises Full."""
        with self._changed:
            places, must_wait = self._max_batch - len(self._running), 0
            for _, texts in self._waiting:
                places -= len(texts)
                must_wait += places < 0
            if must_wait >= self._max_queue and places < len(job.texts):
                raise Full
            self._waiting.append((job, deque(enumerate(job.texts))))
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Free the places of a job that nobody waits for; of one that is done there are none."""
        for text in job.texts:
            text.continuation.ended = True
        with self._changed:
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not job)

    def _write(self) -> None:
        """What the thread does."""
        batch = Batch(self._model.engine, self._model.tokenizer.end_of_text)
        while True:
            with self._changed:
                self._drop_ended()
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                joining = self._admit()
            try:
                events = [self._begin(*each, batch) for each in joining]
                events += [self._grow(each, token) for each, token in batch.step()]
            except Exception as error:
                if not isinstance(error, UserError):
                    log.exception("a defect in the batch")
                with self._changed:
                    failed = {job for job, _, _ in self._running.values()}
                    self._running.clear()
                self._loop.call_soon_threadsafe(_fail, failed, Failed(str(error)))
                batch = Batch(self._model.engine, self._model.tokenizer.end_of_text)
                continue
            self._loop.call_soon_threadsafe(_deliver, events)

    def _drop_ended(self) -> None:
        self._running = {each: of for each, of in self._running.items() if not each.ended}

    def _admit(self) -> list[tuple[Job, int, Text]]:
        """Give places to waiting texts, first come, first served."""
        joining: list[tuple[Job, int, Text]] = []
        tokens = 0
        while self._waiting and len(self._running) < self._max_batch:
            job, texts = self._waiting[0]
            tokens += min(len(texts[0][1].continuation.ids), self._model.context_length)
            if joining and tokens > READ_AT_ONCE:
                break
            number, text = texts.popleft()
            joining.append((job, number, text))
            self._running[text.continuation] = joining[-1]
            if not texts:
                self._waiting.popleft()
        return joining

    def _begin(self, job: Job, number: int, text: Text, batch: Batch) -> tuple[Job, Event]:
        """Let a text join the batch; its first event has the prompt, where that is asked for."""
        prompt = text.continuation
        tokens: Sequence[Token] = ()
        if text.scored_from is not None:
            tokens = scored(self._model.engine, prompt.ids, prompt.alternatives or 0)[text.scored_from :]
        if prompt.max_length:
            batch.add([prompt])
        else:
            prompt.ended = True
        return job, Event(number, text.echo or "", tokens, None if prompt.max_length else "length", echoed=True)

    def _grow(self, continuation: Continuation, token: Token | None) -> tuple[Job, Event]:
        """The event that a chosen token is, None where the text ended before it."""
        job, number, text = self._running[continuation]
        if not continuation.ended:
            return job, Event(number, text.growing.take(), (token,) if token else (), None)
        stopped = text.growing.add(b"", final=True)
        reason: Literal["stop", "length"] = "stop" if stopped or token is None else "length"
        return job, Event(number, text.growing.take(), (token,) if token else (), reason)


def _deliver(events: Sequence[tuple[Job, Event]]) -> None:
    for job, event in events:
        if event.text or event.tokens or event.finish_reason:
            job.put(event)


def _fail(jobs: set[Job], error: Exception) -> None:
    for job in jobs:
        job.fail(error)


def scored(engine: Engine, ids: Sequence[int], alternatives: int) -> list[Token]:
    """Each of `ids` with its probability after those before it, and the likeliest instead; the first has neither."""
    logits = engine.all_logits(np.array([ids]))[0]  # (T, V)
    rest = zip(ids[1:], logits, strict=False)
    return [Token(ids[0]), *(explained(token, row, alternatives) for token, row in rest)]
