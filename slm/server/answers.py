"""A job's events as one JSON object (`whole`) or a stream of them (`pieces`)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from slm.config.use import ServeConfig
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.files import find_model, user_path
from slm.inference.continuation import Token
from slm.inference.text import TextModel
from slm.server.batcher import Batcher, Event, Failed, Full, Job
from slm.server.metrics import Clock, Metrics
from slm.server.protocol import (
    CompletionRequest,
    Explanation,
    Refused,
    check,
    encoded,
    finite,
    heading,
    prompts_of,
    sent,
    texts_of,
    usage,
)

PART = 1 << 16  # bytes of an answer
GRACE = 10  # seconds beyond its timeout that a stream may take to be read


class Completions:
    """Answers requests for completions from one model, by its batcher."""

    def __init__(self, model: TextModel, config: ServeConfig, batcher: Batcher, metrics: Metrics):
        self.model, self.config, self.batcher, self.metrics = model, config, batcher, metrics
        self.described = describe(model, config)

    async def answer(self, body: CompletionRequest, request: Request) -> Response:
        """The whole answer, or a stream of it. Raises Refused where the request asks for too much or comes too late."""
        model, metrics = self.model, self.metrics
        check(body, self.config, self.described["id"])
        clock = Clock(metrics)
        job, read = await asyncio.to_thread(begun, body, self.config, model)
        head = heading(self.described["id"])
        stream = bool(body.stream)
        if stream and metrics.streams >= self.config.max_streams:
            most = f"{self.config.max_streams} requests are being streamed to already."
            raise Refused(429, most, code="rate_limit_exceeded")
        try:
            self.batcher.submit(job)
        except Full:
            waiting = f"{self.config.max_queue} requests are waiting already."
            raise Refused(429, waiting, code="rate_limit_exceeded") from None
        metrics.prompt_tokens.inc(read)
        during = self._watched(job, clock, request, stream)
        if stream:
            metrics.streams += 1
            content = pieces(job, clock, body, head, read, model.tokenizer)
            return Stream(content, during, self.config.timeout + GRACE)
        async with during:
            try:
                answer = await whole(job, clock, body, head, read, model.tokenizer)
            except Gone:
                return Response(status_code=499)
            except Failed as error:
                raise Refused(500, str(error)) from error
        return Whole(answer, self.config.timeout)

    @contextlib.asynccontextmanager
    async def _watched(self, job: Job, clock: Clock, request: Request, stream: bool) -> AsyncIterator[None]:
        """Ends the job when its time is up or its client goes away, and frees its places in any case."""
        late = Refused(504, f"The request took more than {self.config.timeout:g} seconds.", code="timeout")
        timer = asyncio.get_running_loop().call_later(self.config.timeout, job.fail, late)
        gone = asyncio.create_task(until_gone(request.receive))
        gone.add_done_callback(lambda _: job.fail(Gone()))
        try:
            yield
        finally:
            timer.cancel()
            gone.cancel()
            self.batcher.cancel(job)
            clock.done()
            if stream:
                self.metrics.streams -= 1


class Stream(StreamingResponse):
    """Server-sent events that end, with all that belongs to them, when the client goes away or reads too slowly."""

    def __init__(
        self, content: AsyncIterator[bytes], during: contextlib.AbstractAsyncContextManager[None], limit: float
    ):
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._during, self._limit = during, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        async with self._during:
            with anyio.move_on_after(self._limit):
                await self.stream_response(send)


class Whole(Response):
    """JSON that is handed on in parts: what a client does not read is held once, and for `limit` seconds at most."""

    def __init__(self, content: bytes, limit: float):
        super().__init__(content, media_type="application/json")
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with anyio.move_on_after(self._limit):
            for start in range(0, len(self.body), PART):
                part, more = bytes(self.body[start : start + PART]), start + PART < len(self.body)
                await send({"type": "http.response.body", "body": part, "more_body": more})


class Gone(Exception):
    """The client went away."""


def describe(model: TextModel, config: ServeConfig) -> dict[str, Any]:
    """The entry of GET /v1/models."""
    given = user_path(config.model_path)
    try:
        created = int(find_model(given).stat().st_mtime)
    except (OSError, UserError):  # a model that is in memory only
        created = int(time.time())
    return {
        "id": given.resolve().name if given.is_dir() else given.stem,
        "object": "model",
        "created": created,
        "owned_by": "small-language-model",
        "parameters": model.engine.parameters,
        "context_length": model.context_length,
        "vocab_size": model.tokenizer.vocab_size,
        "end_of_text": model.tokenizer.end_of_text,
        "tokenizer": model.tokenizer.name,
        "facts": finite(model.facts),
    }


def begun(body: CompletionRequest, config: ServeConfig, model: TextModel) -> tuple[Job, int]:
    """The job of a request, and how many tokens its prompts have. Raises Refused where it asks for too much.

    Takes a while for long prompts, of which the job keeps only what the model reads.
    """
    prompts = prompts_of(body, config, model)
    return Job(list(texts_of(body, prompts, model))), sum(len(prompt.ids) - prompt.added for prompt in prompts)


async def whole(
    job: Job, clock: Clock, body: CompletionRequest, head: dict[str, Any], read: int, tokenizer: Tokenizer
) -> bytes:
    """All texts in one answer."""
    texts = [""] * len(job.texts)
    tokens: list[list[Token]] = [[] for _ in texts]
    reasons: list[str | None] = [None] * len(texts)
    async for events in job.events():
        clock.saw(events)
        for event in events:
            texts[event.number] += event.text
            tokens[event.number] += event.tokens
            reasons[event.number] = event.finish_reason

    def choice(index: int) -> bytes:
        logprobs = None if body.logprobs is None else Explanation(tokenizer).of(tokens[index])
        tokens[index] = []
        reason = reasons[index]
        return encoded({"index": index, "text": texts[index], "finish_reason": reason, "logprobs": logprobs})

    def content() -> bytes:  # choice by choice, since objects need several times the room of their JSON
        choices = b",".join(choice(index) for index in range(len(texts)))
        return b'%s,"choices":[%s],"usage":%s}' % (encoded(head)[:-1], choices, encoded(usage(read, clock.tokens)))

    return await asyncio.to_thread(content)


async def pieces(
    job: Job, clock: Clock, body: CompletionRequest, head: dict[str, Any], read: int, tokenizer: Tokenizer
) -> AsyncIterator[bytes]:
    """The server-sent events of a stream: a chunk for each token, or an error where it ends before its time."""
    explanations = [Explanation(tokenizer) for _ in job.texts]
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    head = {**head, "usage": None} if with_usage else head

    def chunk(event: Event) -> dict[str, Any]:
        logprobs = explanations[event.number].of(event.tokens) if body.logprobs is not None and event.tokens else None
        choice = {"index": event.number, "text": event.text, "finish_reason": event.finish_reason, "logprobs": logprobs}
        return {**head, "choices": [choice]}

    try:
        async for events in job.events():
            clock.saw(events)
            if any(event.echoed for event in events):  # prompts, which may be long
                for event in events:
                    yield await asyncio.to_thread(lambda event: sent(chunk(event)), event)
            else:
                yield b"".join(sent(chunk(event)) for event in events)
        if with_usage:
            yield sent({**head, "choices": [], "usage": usage(read, clock.tokens)})
        yield b"data: [DONE]\n\n"
    except Refused as error:
        yield sent(error.body)
    except Failed as error:
        yield sent(Refused(500, str(error)).body)
    except Gone:
        pass


async def until_gone(receive: Receive) -> None:
    """Wait until the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
