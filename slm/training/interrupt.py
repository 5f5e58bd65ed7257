"""Signals that a run is to be saved and stopped for."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def first_signal() -> Iterator[Callable[[], int]]:
    """A function that returns the number of the first SIGINT or SIGTERM, 0 before it: the step in hand is finished.

    A second signal has its usual effect, which is to end the process at once.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    with contextlib.suppress(ValueError):  # outside the main thread signals are the caller's business
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield lambda: received[0] if received else 0
    finally:
        restore()
