"""When Python looks for garbage: between steps, and never where a signal would be lost."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from slm.training.interrupt import unbroken


@contextlib.contextmanager
def garbage_held_off() -> Iterator[None]:
    """A block in which garbage is collected only by `collect_garbage`: a GPU, and other processes, wait for it."""
    was_on = gc.isenabled()
    collect_garbage()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        collect_garbage()
        if was_on:
            gc.enable()


def collect_garbage() -> None:
    """Collect garbage. What a signal raises where an object is being freed could only be printed, so it has to wait."""
    with unbroken():
        gc.collect()
