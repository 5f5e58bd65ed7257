"""Continuous batching: one thread owns the engine, and requests join and leave its batch between any two tokens.

A request lives in the event loop, the batch in the thread. What passes between them is a queue under one lock, the flag
`ended` of a text that nobody waits for any more, and one call into the event loop for each step of the batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from slm.errors import UserError
from slm.inference.continuation import NAN, Continuation, Token, explained
from slm.inference.generator import Batch, Engine
from slm.inference.text import TextModel

READ_AT_ONCE = 512  # prompt tokens that are read between two steps, so that texts which are being written do not halt
TURN = 128  # tokens after which a text may have to leave its place to a request that has none

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

    echo: the prompt, where that shall come first. scored_from: the prompt's first token to report with its probability.
    """

    continuation: Continuation
    echo: str | None = None
    scored_from: int | None = None
    begun: bool = False  # to be written; it may have left its place since
    since: int = 0  # tokens that it had when it got its place


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

    Jobs take turns: a place goes to the job that has the fewest, be it that another which has more must leave one, and
    where all jobs have one, texts that have had theirs for `TURN` tokens make room for jobs that have none. A text that
    left goes on later where it was. What a text says does not depend on the others. `start` and `close` are called by
    the event loop, as all else.
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
        """Let the job's texts be written. Raises Full."""
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
        batch = Batch(self._model.engine)
        while True:
            with self._changed:
                self._drop_ended()
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                joining, leaving = self._admit()
            if leaving:
                batch.pause(leaving)
            outcomes = [outcome for each in joining for outcome in self._begin(*each, batch)]
            for continuation in batch.step():
                outcomes += self._grown(continuation)
            self._loop.call_soon_threadsafe(_deliver, outcomes)

    def _drop_ended(self) -> None:
        self._running = {each: of for each, of in self._running.items() if not each.ended}

    def _admit(self) -> tuple[list[tuple[Job, int, Text]], Collection[Continuation]]:
        """Give places to waiting texts: those that join the batch, and those that leave it for them."""
        joining: list[tuple[Job, int, Text]] = []
        leaving: dict[Continuation, tuple[Job, int, Text]] = {}
        tokens = 0
        while self._waiting:
            places = Counter(job for job, _, _ in self._running.values())
            entry = min(self._waiting, key=lambda each: places[each[0]])  # the first of those that have the fewest
            job, texts = entry
            tokens += min(len(texts[0][1].continuation.ids), self._model.context_length)
            if joining and tokens > READ_AT_ONCE:
                break
            if len(self._running) >= self._max_batch:
                leaves = self._leaves(places, places[job])
                if leaves is None:
                    break
                leaving[leaves] = self._running.pop(leaves)
            number, text = texts.popleft()
            self._waiting.remove(entry)
            if texts:
                self._waiting.append(entry)
            joining.append((job, number, text))
            self._running[text.continuation] = joining[-1]
            text.since = len(text.continuation.ids)
        for left in leaving.values():
            self._wait_again(*left)
        return joining, leaving

    def _leaves(self, places: Counter[Job], own: int) -> Continuation | None:
        """The text that leaves its place to a job which has `own` places; None where no job has to."""
        most = max(places.values())
        if most > own + 1:  # of those of a job with the most, the one that is read again soonest
            texts = [each for each, (job, _, _) in self._running.items() if places[job] == most]
            return min(texts, key=lambda each: len(each.ids) - each.begin)
        if own:
            return None
        turns = {each: len(each.ids) - text.since for each, (_, _, text) in self._running.items()}
        longest = max(turns, key=turns.__getitem__)
        return longest if turns[longest] >= TURN else None

    def _wait_again(self, job: Job, number: int, text: Text) -> None:
        for other, texts in self._waiting:
            if other is job:
                texts.appendleft((number, text))
                return
        self._waiting.append((job, deque([(number, text)])))

    def _begin(self, job: Job, number: int, text: Text, batch: Batch) -> list[tuple[Job, Event | Failed]]:
        """Let a text join the batch; its first event has the prompt, where that is asked for."""
        prompt = text.continuation
        if text.begun:
            batch.add([prompt])
            return []
        text.begun = True
        tokens: Sequence[Token] = ()
        try:
            if text.scored_from is not None:
                tokens = scored(self._model.engine, prompt.ids, prompt.alternatives or 0)[text.scored_from :]
        except Exception as error:
            prompt.ended = True
            return [(job, failure(error))]
        if prompt.max_length:
            batch.add([prompt])
        else:
            prompt.ended = True
        return [(job, Event(number, text.echo or "", tokens, None if prompt.max_length else "length", echoed=True))]

    def _grown(self, continuation: Continuation) -> list[tuple[Job, Event | Failed]]:
        """The events that a step of the batch has led to for one of its texts."""
        job, number, _ = self._running[continuation]
        try:
            pieces = continuation.take()
        except Exception as error:
            return [(job, failure(error))]
        return [(job, Event(number, piece.text, (piece.token,), continuation.finish_reason)) for piece in pieces]


def failure(error: Exception) -> Failed:
    """What a request is answered; an error of another kind than a user's is a defect, and logged."""
    if not isinstance(error, UserError):
        log.error("a defect in the batch", exc_info=error)
    return Failed(str(error))


def _deliver(outcomes: Sequence[tuple[Job, Event | Failed]]) -> None:
    for job, outcome in outcomes:
        if isinstance(outcome, Failed):
            job.fail(outcome)
        elif outcome.text or outcome.tokens or outcome.finish_reason:
            job.put(outcome)


def scored(engine: Engine, ids: Sequence[int], alternatives: int) -> list[Token]:
    """Each of `ids` with its probability after those before it, and the likeliest instead; the first has neither."""
    logits = engine.all_logits(np.array([ids]))[0]  # (T, V)
    if not np.isfinite(logits.max(axis=-1)).all():
        raise UserError(NAN)
    rest = zip(ids[1:], logits, strict=False)
    return [Token(ids[0]), *(explained(token, row, alternatives) for token, row in rest)]
