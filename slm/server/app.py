"""HTTP: OpenAI's completions API over the batcher, the page, health and metrics, and the bounds of all that.

A request is checked and becomes a `Job`, and the events of that become one JSON object (`whole`) or a stream of them
(`pieces`). `Gate` stands before everything: who may ask, how much, and whether the server still takes requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import prometheus_client
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import Counter, Gauge, Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm import __version__
from slm.config.use import ServeConfig
from slm.cores import usable_cores
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.files import find_model, user_path
from slm.inference.generator import Token
from slm.inference.text import TextModel, load
from slm.server.batcher import Batcher, Event, Failed, Full, Job
from slm.server.listening import listen
from slm.server.protocol import (
    Completion,
    CompletionRequest,
    ErrorBody,
    Explanation,
    Model,
    Models,
    Refused,
    check,
    check_model,
    explain_problem,
    finite,
    heading,
    sent,
    texts_of,
    token_ids,
    usage,
)

STATIC = Path(__file__).parent / "static"
OPEN = ("/", "/watch", "/health", "/docs", "/openapi.json")  # what needs no key, besides the pages' files
GRACE = 10  # seconds beyond its timeout that a stream may take to be read
# Pages may load nothing from other hosts and run no code but their files, WebAssembly included.
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # buckets of the latencies


class Metrics:
    """What GET /metrics tells."""

    def __init__(self, batcher: Batcher):
        self.registry = registry = prometheus_client.CollectorRegistry()
        self.requests = Counter("slm_requests", "requests to the API by HTTP status", ["status"], registry=registry)
        self.prompt_tokens = Counter("slm_prompt_tokens", "tokens of prompts", registry=registry)
        self.tokens = Counter("slm_completion_tokens", "tokens written", registry=registry)
        self.streams = 0
        Gauge("slm_streams", "requests being streamed to", registry=registry).set_function(lambda: self.streams)
        Gauge("slm_queue_length", "requests waiting", registry=registry).set_function(lambda: batcher.waiting)
        Gauge("slm_running_sequences", "texts being written", registry=registry).set_function(lambda: batcher.running)

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(f"slm_{name}_seconds", what, registry=registry, buckets=SECONDS)

        self.first = seconds("time_to_first_token", "from a request to its first token")
        self.between = seconds("time_between_tokens", "from a text's token to its next")
        self.whole = seconds("request_duration", "from a request to the end of its last text")


class Clock:
    """Measures one request: call `saw` with each of its events."""

    def __init__(self, metrics: Metrics):
        self._metrics, self._begin, self._latest = metrics, time.perf_counter(), dict[int, float]()
        self.tokens = 0

    def saw(self, events: Sequence[Event]) -> None:
        """Count these, which arrived now."""
        now = time.perf_counter()
        for event in events:
            if event.tokens and not event.echoed:
                if not self._latest:
                    self._metrics.first.observe(now - self._begin)
                if event.number in self._latest:
                    self._metrics.between.observe(now - self._latest[event.number])
                self._latest[event.number] = now
                self.tokens += len(event.tokens)

    def done(self) -> None:
        """The request is over."""
        self._metrics.tokens.inc(self.tokens)
        self._metrics.whole.observe(time.perf_counter() - self._begin)


class Gate:
    """Stands before the application: keys, the length of bodies, an end of service, headers, and a count of answers."""

    def __init__(self, app: ASGIApp, server: FastAPI, config: ServeConfig):
        self.app, self.server, self.config = app, server, config
        self._key = None if config.api_key is None else f"Bearer {config.api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, metrics = scope["path"], self.server.state.metrics
        headers = [(b"x-content-type-options", b"nosniff")]
        if path != "/docs":  # FastAPI's page, which loads its parts from elsewhere
            headers.append((b"content-security-policy", POLICY.encode()))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
                if path.startswith("/v1/"):
                    metrics.requests.labels(message["status"]).inc()
            await send(message)

        refused = self._refused(path, dict(scope["headers"]))
        if refused:
            await refused.response()(scope, receive, answer)
        else:
            await self.app(scope, self._bounded(receive), answer)

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> Refused | None:
        is_open = path in OPEN or path.startswith("/static/")
        if self._key and not is_open and not hmac.compare_digest(headers.get(b"authorization", b""), self._key):
            return Refused(
                401, "Incorrect API key provided: send it as Authorization: Bearer KEY.", code="invalid_api_key"
            )
        if self.server.state.draining and path.startswith("/v1/"):
            return Refused(503, "The server is shutting down.", code="shutting_down")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.config.max_request_bytes:
            return self._too_long()
        return None

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` that raises where the body is too long, or does not arrive in time."""
        length, complete = 0, False
        deadline = time.monotonic() + self.config.timeout

        async def bounded() -> Message:
            nonlocal length, complete
            if complete:
                return await receive()
            try:
                with anyio.fail_after(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"The request did not arrive in {self.config.timeout:g} seconds.") from None
            length += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if length > self.config.max_request_bytes:
                raise HTTPException(413, str(self._too_long()))
            return message

        return bounded

    def _too_long(self) -> Refused:
        return Refused(
            413, f"A request may have up to {self.config.max_request_bytes} bytes.", code="request_too_large"
        )


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


class Gone(Exception):
    """The client went away."""


def make_app(model: TextModel, config: ServeConfig) -> FastAPI:
    """The server of a model. While it runs nothing else may use `model`."""
    batcher = Batcher(model, max_batch=config.max_batch, max_queue=config.max_queue)
    metrics = Metrics(batcher)
    described = describe(model, config)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        batcher.close()

    app = FastAPI(title="Small Language Model", version=__version__, lifespan=lifespan, redoc_url=None)
    app.state.batcher, app.state.metrics, app.state.draining = batcher, metrics, False
    app.add_middleware(Gate, server=app, config=config)
    if config.cors:
        app.add_middleware(CORSMiddleware, allow_origins=config.cors, allow_methods=["*"], allow_headers=["*"])
    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return explain_problem(error.errors()[0]).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        unknown = f"Unknown request URL: {request.method} {request.url.path}"
        response = Refused(error.status_code, unknown if error.status_code == 404 else error.detail).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> Response:
        return Refused(500, "The server had an error while processing your request.").response()

    @contextlib.asynccontextmanager
    async def watched(job: Job, clock: Clock, request: Request, stream: bool) -> AsyncIterator[None]:
        """Ends the job when its time is up or its client goes away, and frees its places in any case."""
        late = Refused(504, f"The request took more than {config.timeout:g} seconds.", code="timeout")
        timer = asyncio.get_running_loop().call_later(config.timeout, job.fail, late)
        gone = asyncio.create_task(until_gone(request.receive))
        gone.add_done_callback(lambda _: job.fail(Gone()))
        try:
            yield
        finally:
            timer.cancel()
            gone.cancel()
            batcher.cancel(job)
            clock.done()
            if stream:
                metrics.streams -= 1

    @app.post(
        "/v1/completions", response_model=Completion, responses={200: {"content": {"text/event-stream": {}}}, **errors}
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue prompts. With `stream` the answer is server-sent events, of which the last is `[DONE]`."""
        check(body, config, described["id"])
        clock = Clock(metrics)
        prompts = await asyncio.to_thread(token_ids, body, model.tokenizer)
        job, head = Job(list(texts_of(body, prompts, model))), heading(described["id"])
        read = sum(len(prompt) for prompt in prompts)
        stream = bool(body.stream)
        if stream and metrics.streams >= config.max_streams:
            raise Refused(429, f"{config.max_streams} requests are streamed to already.", code="rate_limit_exceeded")
        try:
            batcher.submit(job)
        except Full:
            raise Refused(429, f"{config.max_queue} requests wait already.", code="rate_limit_exceeded") from None
        metrics.prompt_tokens.inc(read)
        during = watched(job, clock, request, stream)
        if stream:
            metrics.streams += 1
            return Stream(pieces(job, clock, body, head, read, model.tokenizer), during, config.timeout + GRACE)
        async with during:
            try:
                return await whole(job, clock, body, head, read, model.tokenizer)
            except Gone:
                return Response(status_code=499)
            except Failed as error:
                raise Refused(500, str(error)) from error

    @app.get("/v1/models", response_model=Models, responses=errors)
    async def models() -> Response:
        """The model that this server has."""
        return JSONResponse({"object": "list", "data": [described]})

    @app.get("/v1/models/{id}", response_model=Model, responses=errors)
    async def one_model(id: str) -> Response:
        """The same, asked for by its id."""
        check_model(id, described["id"])
        return JSONResponse(described)

    @app.get("/health", responses=errors)
    async def health() -> Response:
        """200 while requests are taken, 503 while the last ones are finished."""
        if app.state.draining:
            return Refused(503, "The server is shutting down.", code="shutting_down").response()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics_text() -> Response:
        """Counts and latencies, in the text format of Prometheus."""
        text = prometheus_client.generate_latest(metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    if config.run_dir is not None:
        from slm.server.watch import router

        app.include_router(router(user_path(config.run_dir)))
    if (STATIC / "index.html").is_file():
        app.mount("/static", StaticFiles(directory=STATIC), name="static")

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            # The link to the learning page is shown where there is one.
            page = (STATIC / "index.html").read_text(encoding="utf-8")
            return HTMLResponse(page if config.run_dir is None else page.replace("<nav hidden", "<nav"))

    return app


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
        "tokenizer": model.tokenizer.name,
        "facts": finite(model.facts),
    }


async def whole(
    job: Job, clock: Clock, body: CompletionRequest, head: dict[str, Any], read: int, tokenizer: Tokenizer
) -> Response:
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
    choices = [
        {
            "index": index,
            "text": text,
            "finish_reason": reasons[index],
            "logprobs": None if body.logprobs is None else Explanation(tokenizer).of(tokens[index]),
        }
        for index, text in enumerate(texts)
    ]
    return JSONResponse({**head, "choices": choices, "usage": usage(read, clock.tokens)})


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


class Server(uvicorn.Server):
    """Takes no new requests after SIGTERM or SIGINT, finishes those it has, then exits; a second one exits at once."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal came."""
        state = self.config.app.state  # type: ignore[union-attr]
        self.should_exit = self.force_exit = state.draining
        state.draining = True

    async def on_tick(self, counter: int) -> bool:
        """True where it is time to exit; called ten times a second."""
        state = self.config.app.state  # type: ignore[union-attr]
        idle = not (state.batcher.waiting or state.batcher.running)
        return await super().on_tick(counter) or (state.draining and idle)


def main(config: ServeConfig) -> None:
    """`slm serve`. Raises UserError where the model cannot be loaded or the address cannot be listened on."""
    model = load(config.model_path, device=config.device, threads=config.threads or usable_cores())
    app = make_app(model, config)
    listening, host, address = listen(config.host, config.port)
    about = describe(model, config)
    key = "" if config.api_key is None else " -H 'Authorization: Bearer KEY'"
    body = json.dumps({"model": about["id"], "prompt": "Once upon a time", "max_tokens": 100})
    page = f"{address}/ to write, " if (STATIC / "index.html").is_file() else ""
    print(f"model      {config.model_path}, {about['parameters']:,} parameters, as {about['id']!r}")
    print(f"listening  {address}, OpenAI's completions API under /v1; Ctrl-C ends")
    print(f"try        curl {address}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'")
    print(f"look at    {page}{address}/docs for the API")
    if config.api_key is None and not ipaddress.ip_address(host).is_loopback:
        print("warning: whoever reaches this address can use the model: --api_key asks for a key", file=sys.stderr)
    server = Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE))
    server.run(sockets=[listening])
