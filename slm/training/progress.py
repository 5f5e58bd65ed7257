"""What a run says while it learns: a bar, how much memory it takes, and how long it will take."""

from __future__ import annotations

import math
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from slm.device import peak_memory
from slm.training.plan import duration

if TYPE_CHECKING:
    from slm.training.trainer import Run

REFRESH_SECONDS = 0.5  # of the bar; reading the loss more often would make a GPU wait
MEMORY_STEPS = 3  # after which a run has held as much memory as it will


class Progress:
    """The bar of a run, and notes above it: seconds of one that has a time limit, else steps."""

    def __init__(self, run: Run):
        self._run = run
        limit = run.time_limit
        total, done = (round(limit), round(run.state.seconds)) if limit else (run.planned_steps, run.state.step)
        self._bar = tqdm(
            total=total,
            initial=min(done, total),
            dynamic_ncols=True,
            smoothing=0.05,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed} done, {remaining} to go{postfix}",
        )
        self._shown_at, self._shown_step = time.perf_counter(), run.state.step
        self._told_memory, self._told_time = False, run.state.step > 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def write(self, note: str) -> None:
        """Show a note above the bar; an empty one is none."""
        if note:
            self._bar.write(note)

    def after_step(self) -> None:
        """Bring the bar up to date, and tell once what is known by now."""
        run = self._run
        if time.perf_counter() - self._shown_at > REFRESH_SECONDS or run.state.step == run.planned_steps:
            self._show()
        if run.steps_timed == MEMORY_STEPS and not self._told_memory and (peak := peak_memory(run.device)):
            self._told_memory = True
            self.write(f"memory     {peak / 1e9:.1f} GB at most so far")
        if not self._told_time and not run.time_limit and run.step_seconds > 5 and run.steps_timed >= 5:
            self._told_time = True
            left = run.step_seconds / run.steps_timed * (run.planned_steps - run.state.step)
            if left > 60:
                until = datetime.now() + timedelta(seconds=left)
                self.write(f"this will take about {duration(left)}, until {until:%H:%M}; Ctrl-C saves and stops")

    def _show(self) -> None:
        state, now = self._run.state, time.perf_counter()
        steps = max(1, state.step - self._shown_step)  # a run may have gone back
        speed = steps * self._run.tokens_per_step / (now - self._shown_at)
        loss = math.nan if self._run.recent_loss is None else float(self._run.recent_loss)
        self._bar.set_postfix_str(f"loss {loss:.3f}, rate {state.rate:.1e}, {speed:,.0f} tokens/s", refresh=False)
        done = round(state.seconds) if self._run.time_limit else state.step
        self._bar.update(min(done, self._bar.total) - self._bar.n)
        self._shown_at, self._shown_step = now, state.step
