"""The address that a server listens on."""

from __future__ import annotations

import socket

from slm.errors import UserError


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
