"""What `slm serve` and `slm watch` share: the address they listen on, the names they answer to, and their connections.

A connection costs a descriptor. None is held for a client that does not send a whole request or does not read its
answer, and there are never so many that the process runs out of descriptors.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import math
import re
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from slm.errors import UserError

HEADERS = 10.0  # seconds within which a request's headers must be whole
SENDING = 20.0  # seconds within which a client must read what was sent: some 64 kB
KEEP_ALIVE = 75  # seconds that an idle connection stays open: longer than the pools of clients keep theirs
MOST_CONNECTIONS = 1000
LOOPBACK = ("127.0.0.1", "::1", "localhost")

log = logging.getLogger(__name__)


def listen(host: str, port: int) -> tuple[socket.socket, str, str]:
    """A socket that listens there, port 0 being any that is free, its host, and its address for a browser.

    Raises UserError where that cannot be.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).split(" (")[0]
        raise UserError(f"cannot listen on {host}:{port}: {reason}; choose with --host and --port") from error
    host, port = listening.getsockname()[:2]
    return listening, host, f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Entrance:
    """Answers for the server's own names only, and makes HEAD and a proxy's prefix into what the routes know.

    Any site can let a name of its own point to 127.0.0.1 (DNS rebinding) and so let its pages talk to a server there,
    but the Host header still has that name. A server on an open address answers to all names unless some are `allowed`.
    """

    def __init__(self, app: ASGIApp, host: str, allowed: Sequence[str], root_path: str = ""):
        self.app, self.root_path = app, root_path
        names = {name.lower() for name in (*LOOPBACK, host.strip("[]"), *allowed)}
        self._names = None if "*" in allowed or not (allowed or _is_loopback(host)) else names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] == "http":
            name = _name(next((value for key, value in scope["headers"] if key == b"host"), None))
            if self._names is not None and name is not None and name not in self._names:
                mend = "ask by the address that it printed, or start it with --allowed_hosts and this name"
                message = f"This server does not answer for the host {name!r}: {mend}."
                error = {"message": message, "type": "invalid_request_error", "param": None, "code": "unknown_host"}
                await JSONResponse({"error": error}, 403)(scope, receive, send)
                return
            path = scope["path"]
            if self.root_path and path == self.root_path:  # the pages' links are relative to the folder
                await RedirectResponse(f"{self.root_path}/")(scope, receive, send)
                return
            if self.root_path and not path.startswith(f"{self.root_path}/"):
                path = self.root_path + path
            # uvicorn itself leaves out the body of the answer to HEAD.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {**scope, "method": method, "path": path, "raw_path": path.encode(), "root_path": self.root_path}
        await self.app(scope, receive, send)


def _name(header: bytes | None) -> str | None:
    """The name in a Host header, without its port; None where there is no header, as a browser always sends one."""
    if header is None:
        return None
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*))(?::\d*)?", header.decode("latin-1").lower())
    return (found[1] or found[2] or "") if found else header.decode("latin-1")


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, an address or a name."""
    try:
        found = {ipaddress.ip_address(entry[4][0]) for entry in socket.getaddrinfo(host or "0.0.0.0", None)}
    except (OSError, UnicodeError, ValueError):
        return False
    return all(address.is_loopback for address in found)


class Connection(H11Protocol):
    """An HTTP/1.1 connection, which is cut at its `deadline` (in seconds of the event loop's clock).

    There is one while a request's headers, or what is left of a body that nobody wants, are arriving, and while the
    client has more to read than may wait. An idle connection has uvicorn's own time limit.
    """

    deadline = math.inf
    since = 0.0  # idle

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, if need be that of the connection which has been idle longest."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self.deadline = self.since + HEADERS
        most, _ = room()
        if len(self.connections) > most:
            others: list[Any] = [each for each in self.connections if each is not self]
            idle = [each for each in others if not each.busy and not each.transport.is_closing()]
            if idle:
                min(idle, key=lambda each: each.since).transport.abort()
            else:
                transport.write(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
                self._end()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request came."""
        super().data_received(data)
        if self.transport.is_closing():
            self._end()
        elif self.busy:
            if not self.flow.write_paused:
                self.deadline = math.inf
        elif self.deadline == math.inf:
            self.deadline = self.loop.time() + HEADERS

    def on_response_complete(self) -> None:
        """An answer is written, though perhaps not read."""
        self.since = self.loop.time()
        super().on_response_complete()
        if self.transport.is_closing():
            self._end()

    def pause_writing(self) -> None:
        """More waits to be read than should."""
        super().pause_writing()
        self.deadline = self.loop.time() + SENDING

    def resume_writing(self) -> None:
        """Most of it was read."""
        super().resume_writing()
        self.deadline = math.inf if self.busy else self.loop.time() + HEADERS

    def timeout_keep_alive_handler(self) -> None:
        """It was idle for too long."""
        super().timeout_keep_alive_handler()
        self._end()

    def _end(self) -> None:
        self.transport.close()
        self.deadline = self.loop.time() + SENDING  # for the client to read what there is


class Server(uvicorn.Server):
    """Serves over such connections."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        config.http, config.loop, config.ws = Connection, "asyncio", "none"
        config.timeout_keep_alive = KEEP_ALIVE
        _, config.backlog = room()  # for asyncio that is how many it takes in at once

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().set_exception_handler(Complaints())
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(1024)

    async def on_tick(self, counter: int) -> bool:
        """True where it is time to exit; called ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for each in list(self.server_state.connections):
                if isinstance(each, Connection) and each.deadline < now:
                    each.transport.abort()
        return await super().on_tick(counter)


class Complaints:
    """What asyncio reports, but a lack of descriptors, which it reports again and again, once a minute."""

    def __init__(self) -> None:
        self._latest = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log it."""
        if "accept() out of system resource" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._latest > 60:
            self._latest = time.monotonic()
            log.error("no connection can be taken: %s", context.get("exception"))


@functools.cache
def room() -> tuple[int, int]:
    """How many connections there may be, and how many of them may be taken in at once.

    Of the descriptors that are free when this is first asked for, a quarter is left for files. Some more are for
    connections that are taken in before those they displace are closed: asyncio needs a few turns for that.
    """
    free = 4 * MOST_CONNECTIONS
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = sum(1 for _ in Path("/dev/fd").iterdir())
        free = free if soft == resource.RLIM_INFINITY else min(free, soft - used)
    at_once = min(max(free // 32, 1), 32)
    return max(1, min(MOST_CONNECTIONS, free - free // 4 - 6 * at_once)), at_once
