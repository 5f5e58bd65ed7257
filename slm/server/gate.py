"""ASGI middleware around the application: the key, type and size of a request, and whether the server is ending."""

from __future__ import annotations

import hmac
import re
import time

import anyio
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm.config.use import ServeConfig
from slm.server.protocol import Refused

OPEN = ("/", "/watch", "/health", "/docs", "/openapi.json")  # what needs no key, besides the pages' files
# Pages may load nothing from other hosts and run no code but their files, WebAssembly included.
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MOST_HELD = 8  # times the length of the longest body: all bodies of requests that are being answered
MOST_PARTS = 1 << 14  # lists, objects and keys in a body: a megabyte of them would hold the event loop for 0.25 s
# What pages of other sites cannot send without being asked for permission first.
JSON = re.compile(rb"application/([\w.-]+\+)?json\s*(;.*)?", re.IGNORECASE)


class Gate:
    """Middleware around the application: keys, body lengths, the end of service, response headers, and counts."""

    def __init__(self, app: ASGIApp, server: FastAPI, config: ServeConfig):
        self.app, self.server, self.config = app, server, config
        self.held = 0  # bytes of the bodies of requests that are being answered
        self._key = None if config.api_key is None else config.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, metrics = scope["path"][len(scope["root_path"]) :], self.server.state.metrics
        headers = [(b"x-content-type-options", b"nosniff"), (b"content-security-policy", POLICY.encode())]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
                if path.startswith("/v1/"):
                    metrics.requests.labels(message["status"]).inc()
            await send(message)

        refused = self._refused(scope["method"], path, dict(scope["headers"]))
        if refused:
            await refused.response()(scope, receive, answer)
        else:
            body = Body(self, receive)
            try:
                await self.app(scope, body, answer)
            finally:
                self.held -= body.length

    def _refused(self, method: str, path: str, headers: dict[bytes, bytes]) -> Refused | None:
        is_open = path in OPEN or path.startswith("/static/")
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        has_key = scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key or b"")
        if self._key and not is_open and not has_key:
            return Refused(
                401, "Incorrect API key provided: send it as Authorization: Bearer KEY.", code="invalid_api_key"
            )
        if self.server.state.draining and path.startswith("/v1/"):
            return Refused(503, "The server is shutting down.", code="shutting_down")
        if method == "POST" and not JSON.fullmatch(headers.get(b"content-type", b"")):
            return Refused(400, "The body must be a JSON object, sent as application/json.")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.config.max_request_bytes:
            return self.too_long()
        return None

    def too_long(self) -> Refused:
        """What is said of a long body."""
        return Refused(
            413, f"A request may have up to {self.config.max_request_bytes} bytes.", code="request_too_large"
        )


class Body:
    """The messages of a request.

    Raises where its body is too long or has too many parts, arrives too slowly, or all bodies are too many.
    """

    def __init__(self, gate: Gate, receive: Receive):
        self._gate, self._receive = gate, receive
        self.length, self._parts, self._complete = 0, 0, False
        self._deadline = time.monotonic() + gate.config.timeout

    async def __call__(self) -> Message:
        """The next message."""
        if self._complete:
            return await self._receive()
        gate = self._gate
        try:
            with anyio.fail_after(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"The request did not arrive in {gate.config.timeout:g} seconds.") from None
        received = message.get("body", b"")
        size = len(received)
        self.length, gate.held = self.length + size, gate.held + size
        self._parts += sum(map(received.count, (b"[", b"{", b":")))
        self._complete = not message.get("more_body", False)
        if self.length > gate.config.max_request_bytes:
            raise HTTPException(413, str(gate.too_long()))
        if self._parts > MOST_PARTS:
            raise HTTPException(400, f"A body may have up to {MOST_PARTS:,} lists, objects and keys.")
        if gate.held > MOST_HELD * gate.config.max_request_bytes:
            raise HTTPException(503, "Requests that are being answered are too long together: come again.")
        return message
