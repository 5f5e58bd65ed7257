"""The routes of the server: OpenAI's completions API, the pages, health and metrics.

A request is checked and becomes a `Job`, whose events become the answer (`slm.server.answers`). `Gate` stands before
everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import prometheus_client
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from slm import __version__
from slm.config.use import ServeConfig
from slm.files import user_path
from slm.inference.text import TextModel
from slm.server import tokens
from slm.server.answers import Completions
from slm.server.batcher import Batcher
from slm.server.gate import Gate
from slm.server.listening import Entrance
from slm.server.metrics import Metrics
from slm.server.protocol import (
    Completion,
    CompletionRequest,
    ErrorBody,
    Model,
    Models,
    Refused,
    check_model,
    explain_problem,
)

STATIC = Path(__file__).parent / "static"
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}


def make_app(model: TextModel, config: ServeConfig) -> FastAPI:
    """The server of a model. While it runs nothing else may use `model`."""
    batcher = Batcher(model, max_batch=config.max_batch, max_queue=config.max_queue)
    metrics = Metrics(batcher)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        batcher.close()

    app = FastAPI(title="Small Language Model", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.batcher, app.state.metrics, app.state.draining = batcher, metrics, False
    app.add_middleware(Gate, server=app, config=config)
    if config.cors:
        app.add_middleware(CORSMiddleware, allow_origins=config.cors, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Entrance, host=config.host, allowed=config.allowed_hosts, root_path=config.root_path)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)
    _add_api(app, Completions(model, config, batcher, metrics))
    app.include_router(tokens.router(model))
    _add_state(app, metrics)
    _add_pages(app, config)
    return app


async def _refused(_: Request, error: Any) -> Response:
    return error.response()


async def _invalid(_: Request, error: Any) -> Response:
    return explain_problem(error.errors()[0]).response()


async def _http_error(request: Request, error: Any) -> Response:
    unknown = f"Unknown request URL: {request.method} {request.url.path}"
    response = Refused(error.status_code, unknown if error.status_code == 404 else error.detail).response()
    response.headers.update(error.headers or {})
    return response


async def _defect(_: Request, error: Exception) -> Response:
    return Refused(500, "The server had an error while processing your request.").response()


def _add_api(app: FastAPI, service: Completions) -> None:
    """OpenAI's completions and models."""
    streamed: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

    @app.post("/v1/completions", response_model=Completion, responses={**streamed, **ERRORS})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue prompts. With `stream` the answer is server-sent events, of which the last is `[DONE]`."""
        return await service.answer(body, request)

    @app.post("/v1/chat/completions", include_in_schema=False)
    async def chat() -> Response:
        """A request that a chat client sends: what it has to send here."""
        mend = "it continues texts and has learned no roles. Send a 'prompt' to /v1/completions instead of 'messages'."
        raise Refused(404, f"'{service.described['id']}' is no chat model: {mend}", param="model")

    @app.get("/v1/models", response_model=Models, responses=ERRORS)
    async def models() -> Response:
        """The model that this server has."""
        return JSONResponse({"object": "list", "data": [service.described]})

    @app.get("/v1/models/{id}", response_model=Model, responses=ERRORS)
    async def one_model(id: str) -> Response:
        """The same, asked for by its id."""
        check_model(id, service.described["id"])
        return JSONResponse(service.described)


def _add_state(app: FastAPI, metrics: Metrics) -> None:
    """Health and metrics."""

    @app.get("/health", responses=ERRORS)
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


def _add_pages(app: FastAPI, config: ServeConfig) -> None:
    """The writing page, and the learning page where there is a run to show."""
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

        @app.get("/docs", include_in_schema=False)
        async def docs() -> Response:
            return FileResponse(STATIC / "docs.html")
