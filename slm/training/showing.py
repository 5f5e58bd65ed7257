"""Calls to code that only displays a run (bar, plot, table): what it raises is a warning and never ends the run."""

from __future__ import annotations

import sys
from collections.abc import Callable

from slm.errors import UserError, first_line


class Showing:
    """Calls display code; whatever it raises becomes a warning, and the same warning is given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, what: str, show: Callable[..., object], *arguments: object) -> str:
        """Call `show(*arguments)`. Returns "", or a line of warning that names `what`."""
        try:
            show(*arguments)
        except Exception as error:  # whatever it is, the run is worth more
            reason = first_line(error)
            if not isinstance(error, UserError):
                reason = f"no {what} ({type(error).__name__}: {reason})"
            if reason not in self._given:
                self._given.add(reason)
                return f"warning: {reason}; the run goes on\n"
        return ""


def printable(text: str, encoding: str = "utf-8") -> str:
    """`text` with a question mark for what `encoding` has no bytes for, as for a file's name that is no UTF-8."""
    return text.encode(encoding, "replace").decode(encoding)


def say(text: str) -> None:
    """Print `text` as whole lines, nothing where it is empty. `slm.cli` handles an output that cannot be written to."""
    if text:
        print(printable(text.rstrip("\n"), sys.stdout.encoding or "utf-8"))
