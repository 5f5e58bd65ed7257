"""Stands before the application: who may ask, how much, and whether the server still takes requests."""

from __future__ import annotations

import hmac
import time

import anyio
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm.config.use import ServeConfig
from slm.server.protocol import (
    Refused,
)

OPEN = ("/", "/watch", "/health", "/docs", "/openapi.json")  # what needs no key, besides the pages' files
# Pages may load nothing from other hosts and run no code but their files, WebAssembly included.
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


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
