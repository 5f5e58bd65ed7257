"""What a run says while it learns: a bar, how much memory it takes, and how long it will take."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from slm.device import peak_memory
from slm.learner.learner import Outcome
from slm.training.describe import duration
from slm.training.plan import Plan
from slm.training.showing import Showing, printable
from slm.training.state import Pace, State
from slm.training.terminal import wrapped

REFRESH_SECONDS = 0.5  # of the bar; reading the loss more often would make a GPU wait
MEMORY_STEPS = 3  # after which a run has held as much memory as it will


class Progress:
    """The bar of a run, and notes above it: seconds of one that has a time limit, else steps."""

    def __init__(self, plan: Plan, state: State, device: torch.device, clock: Callable[[], float]):
        self._plan, self._state, self._device, self._clock = plan, state, device, clock
        limit = plan.time_limit
        total, done = (round(limit), round(state.seconds)) if limit else (plan.steps, state.step)
        self._bar = tqdm(
            total=total,
            initial=min(done, total),
            dynamic_ncols=True,
            smoothing=0.05,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed} done, {remaining} to go{postfix}",
        )
        self._recent_loss: Tensor | None = None  # a running mean
        self._shown_at, self._shown_step = clock(), state.step
        self._memory_reported, self._time_reported = False, state.step > 0
        self._attempt = Showing()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def write(self, note: str) -> None:
        """Show a note above the bar; an empty one is ignored."""
        if note:
            self._bar.write(wrapped(printable(note.rstrip("\n"), sys.stdout.encoding or "utf-8")))

    def after_step(self, outcome: Outcome, pace: Pace) -> None:
        """Bring the bar up to date, and report once what is known by now."""
        self.write(self._attempt("progress", self._after_step, outcome, pace))

    def _after_step(self, outcome: Outcome, pace: Pace) -> None:
        if not outcome.skipped:
            recent = self._recent_loss
            self._recent_loss = outcome.loss if recent is None else recent.lerp(outcome.loss, 0.1)
        if self._clock() - self._shown_at > REFRESH_SECONDS or self._state.step == self._plan.steps:
            self._show()
        if pace.steps == MEMORY_STEPS and not self._memory_reported and (peak := peak_memory(self._device)):
            self._memory_reported = True
            self.write(f"memory     {peak / 1e9:.1f} GB at most so far")
        if not self._time_reported and not self._plan.time_limit and pace.seconds > 5 and pace.steps >= 5:
            self._time_reported = True
            left = (self._plan.steps - self._state.step) / pace.steps_per_second
            if left > 60:
                until = datetime.now() + timedelta(seconds=left)
                self.write(f"this will take about {duration(left)}, until {until:%H:%M}; Ctrl-C saves and stops")

    def _show(self) -> None:
        state, now = self._state, self._clock()
        steps = max(1, state.step - self._shown_step)  # a run may have gone back
        speed = steps * self._plan.tokens_per_step / max(now - self._shown_at, 1e-9)
        loss = math.nan if self._recent_loss is None else float(self._recent_loss)
        self._bar.set_postfix_str(f"loss {loss:.3f}, rate {state.rate:.1e}, {speed:,.0f} tokens/s", refresh=False)
        done = round(state.seconds) if self._plan.time_limit else state.step
        self._bar.update(min(done, self._bar.total) - self._bar.n)
        self._shown_at, self._shown_step = now, state.step
