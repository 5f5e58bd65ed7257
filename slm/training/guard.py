"""Detects what is wrong with a run: NaN, loss spikes, skipped steps."""

from __future__ import annotations

import math

import torch

from slm.learner.learner import Outcome
from slm.training.state import State

CHECK_STEPS = 20  # between checks of the loss; this many skipped steps in a row are trouble
SPIKE = 1.0  # nats by which the mean loss between two checks may be above the lowest so far


class Guard:
    """Sees every step. What steps computed is summed up on the device, so that nothing waits for it between checks."""

    def __init__(self, state: State, device: torch.device):
        self.state = state
        self.loss_sum = torch.zeros((), device=device)  # of the steps since the last check
        self.trained = torch.zeros(2, device=device)  # losses and accuracies of the steps since the last evaluation
        self.gradient_norm = torch.zeros(())  # of the last step, before clipping
        self.restart()

    def restart(self) -> None:
        """Go on from what the state says."""
        self.loss_sum.fill_(self.state.checked_loss)
        self.trained.copy_(torch.tensor([self.state.trained_loss, self.state.trained_accuracy]))
        self.gradient_norm = torch.tensor(self.state.gradient_norm)

    def update_state(self) -> None:
        """Bring the state's copies of what is kept here up to date."""
        self.state.gradient_norm, self.state.checked_loss = float(self.gradient_norm), float(self.loss_sum)
        self.state.trained_loss, self.state.trained_accuracy = self.trained.tolist()

    def evaluated(self) -> None:
        """Sum up anew: the model was evaluated."""
        self.state.trained_steps = 0
        self.trained.zero_()
        self.update_state()

    def saw(self, outcome: Outcome) -> None:
        """Take note of a step."""
        self.gradient_norm = outcome.gradient_norm
        if outcome.skipped:
            self.state.skipped += 1
            self.state.skipped_in_a_row += 1
        else:
            self.loss_sum += outcome.loss
            self.trained += torch.stack((outcome.loss, outcome.accuracy))
            self.state.trained_steps += 1
            self.state.skipped_in_a_row = 0

    def trouble(self, *, final: bool) -> str:
        """What is wrong with the run, "" if nothing; the loss is checked every CHECK_STEPS steps and at the end."""
        state = self.state
        steps = state.step - state.checked_step
        limit = min(steps, CHECK_STEPS) if final else CHECK_STEPS
        if state.skipped_in_a_row >= limit > 0:
            return f"the gradient was NaN or infinite {state.skipped_in_a_row} times in a row"
        if steps == 0 or not (final or steps >= CHECK_STEPS):
            return ""
        counted = steps - (state.skipped - state.checked_skipped)
        if counted <= 0:
            return f"the gradient was NaN or infinite in all of the last {steps} steps"
        loss = float(self.loss_sum) / counted
        if not math.isfinite(loss):
            return "the loss is NaN or infinite"
        if loss > state.lowest_loss + SPIKE and steps >= CHECK_STEPS:
            return f"the loss rose from {state.lowest_loss:.2f} to {loss:.2f}"
        state.lowest_loss = min(state.lowest_loss, loss)
        state.checked_step, state.checked_skipped = state.step, state.skipped
        self.loss_sum.zero_()
        return ""
