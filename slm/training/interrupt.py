"""Signals: which of them save a run and end it, and which code they must not interrupt."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slm.cores import processes

# Ctrl-C, `kill`, a closed terminal (SIGBREAK on Windows), and what batch systems send before a time limit. SIGINT is
# the last one, so that it is the last one to be restored: its handler raises, and the others' are in place then.
_NAMES = ("SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGBREAK", "SIGINT")
STOPPING = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def set_handler(
    handler: Callable[[int, Any], object] | signal.Handlers, numbers: Sequence[int] = STOPPING
) -> dict[int, Any]:
    """Let `handler` take these signals, by default all that stop a run; returns the handlers before it.

    Signals that are ignored, as `nohup` ignores SIGHUP, stay so, but for SIGTERM and SIGINT. Outside the main thread
    signals are the caller's business, and nothing is changed.
    """
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        for number in numbers:
            ignored = signal.getsignal(number) in (signal.SIG_IGN, None)  # None: another language's
            if not ignored or number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, handler) or signal.SIG_DFL
    return before


def restore(before: dict[int, Any]) -> None:
    """Put the handlers back that `set_handler` has returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def first_signal() -> Iterator[Callable[[], int]]:
    """A function that returns the number of the first signal, 0 before it: the step in hand is finished.

    A second Ctrl-C, or a second SIGTERM, has its usual effect, which is to end the process at once. Others change
    nothing, as they often come together: a terminal that is closed sends two, a batch system two different ones, and
    torchrun passes on what its processes have already got. It ends them with SIGKILL where they take too long.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        again = number in received and number in (signal.SIGINT, signal.SIGTERM) and not processes().restartable
        received.append(number)
        if again:
            restore(before)
            signal.raise_signal(number)

    before = set_handler(note)
    try:
        yield lambda: received[0] if received else 0
    finally:
        restore(before)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """A block that no signal breaks off, for writing a file: those that come have their effect after it."""
    late: list[int] = []
    before = set_handler(lambda number, _: late.append(number))
    try:
        yield
    finally:
        restore(before)
        for number in dict.fromkeys(late):
            signal.raise_signal(number)
