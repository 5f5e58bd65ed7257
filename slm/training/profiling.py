"""Where a step's time goes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from slm.files import replacing
from slm.training.showing import Showing

WAIT, STEPS = 3, 5  # steps before, and steps that are recorded
TRACE = "trace.json"
PARTS = ("batch", "forward and loss", "backward", "optimizer")  # of a step, as the learner names them


@contextmanager
def profiling(
    wanted: bool, device: torch.device, folder: Path, write: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """A function to be called after each step; after the eighth, `folder` has a Chrome trace and `write` gets a table.

    wanted: else nothing is recorded. A trace that cannot be written is a warning.
    """
    if not wanted:
        yield lambda: None
        return
    path = folder / TRACE

    def ready(recorded: Any) -> None:
        write(Showing()(TRACE, show, recorded))

    def show(recorded: Any) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            trace = Path(temporary) / TRACE
            recorded.export_chrome_trace(str(trace))
            with replacing(path) as file:
                file.write(trace.read_bytes())
        write(table(recorded.key_averages(), device) + f"\nfor chrome://tracing or ui.perfetto.dev: {path.resolve()}")

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    steps = schedule(wait=WAIT - 1, warmup=1, active=STEPS, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=ready) as profiler:
        yield profiler.step


def table(events: Any, device: torch.device) -> str:
    """The parts of a step, then the operations that take most time, in milliseconds a step."""
    gpu = device.type == "cuda"

    def milliseconds(event: Any, own: bool) -> float:
        of = f"{'self_' if own else ''}{'device' if gpu else 'cpu'}_time_total"
        return float(getattr(event, of)) / 1000 / STEPS

    by_name = {event.key: event for event in events}
    parts = [(name, milliseconds(by_name[name], own=False)) for name in PARTS if name in by_name]
    whole = sum(time for _, time in parts) or 1.0
    operations = sorted(
        (
            (event.key, milliseconds(event, own=True), event.count // STEPS)
            for event in events
            if event.key not in PARTS
        ),
        key=lambda entry: -entry[1],
    )[:12]
    lines = [f"a step takes {whole:,.1f} ms on the {'GPU' if gpu else 'CPU'}, as recorded:"]
    lines += [f"  {name:40.40} {time:>9,.1f} ms {time / whole:>6.1%}" for name, time in parts]
    lines += ["of which these operations:"]
    lines += [f"  {name:40.40} {time:>9,.1f} ms {time / whole:>6.1%} {n:>6,} calls" for name, time, n in operations]
    return "\n".join(lines)
