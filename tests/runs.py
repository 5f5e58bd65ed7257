"""A training run on a toy text, for the tests: its settings, how it is started, and what may befall it."""

import dataclasses
import math
import os
import signal
import time
from pathlib import Path

import torch

from slm.checkpoint import file as checkpoint
from slm.config.model import ModelConfig
from slm.config.train import DataConfig, TrainConfig
from slm.data.corpus import prepare
from slm.learner.workers import Workers
from slm.run_files import read_rows, read_samples
from slm.training import command, folder
from slm.training.run import assemble

CPU = torch.device("cpu")


def toy_config(text, out_dir):
    """4 sequences of 16 tokens a step, 8 steps; fp32 on the CPU."""
    return TrainConfig(
        data=DataConfig(dataset=str(text), cache_dir=str(text.parent / "cache"), val_fraction=0.1),
        model=ModelConfig(vocab_size=400, context_length=16, n_layer=2, n_head=2, n_embd=16),
        batch_size=4, max_steps=8, eval_batches=2, precision="fp32", device="cpu", export="none",
        out_dir=str(out_dir),
    )  # fmt: skip


def change(config, **changes):
    """`config` with other values, also of its model."""
    model = dataclasses.replace(config.model, **{k: changes.pop(k) for k in list(changes) if hasattr(config.model, k)})
    return dataclasses.replace(config, model=model, **changes)


def train(config, befall=lambda run: None, *, clock=time.perf_counter, dtype=None, workers=None):
    """The whole command. befall: changes parts of the run before it begins. dtype: instead of the config's."""

    def assembled(config, corpus, device, picked, *more):
        run = assemble(config, corpus, device, dtype or picked, *more)
        befall(run)
        return run

    return command.train(config, workers or Workers(device=CPU), clock=clock, assemble=assembled)


def new_run(config, dtype=torch.float32, start=None):
    """The run of `config`, assembled but not begun."""
    with folder.opened(config):
        pass
    return assemble(config, prepare(config.data, config.model.vocab_size), CPU, dtype, start)


def step(run, seen=None):
    """One step as the loop makes it; returns its outcome."""
    plan, state = run.plan, run.state
    state.rate = plan.rate(state)
    batches = [run.batch(number) for number in plan.batches_of(state.step)]
    outcome = run.learner.step(batches, rate=state.rate, seed=plan.seed_of(state.step), pieces=state.pieces)
    state.step, state.pieces = state.step + 1, outcome.pieces
    run.guard.saw(outcome)
    return outcome


def measure(run, split="val", sequences=None):
    """The model of a run as it is."""
    return run.evaluator.measure(run.learner, split, sequences)


def in_step(number, action):
    """Befalls a run: `action()` in the middle of the step that makes its state.step this number."""

    def befall(run):
        batch = run.batch

        def acting(n):
            if n == run.plan.batches_of(number - 1)[0]:
                action()
            return batch(n)

        run.batch = acting

    return befall


def stopped_at(step, number=signal.SIGINT):
    """Befalls a run: a signal in the middle of this step."""
    return in_step(step, lambda: os.kill(os.getpid(), number))


def with_rates(rate):
    """Befalls a run: the learning rate of a step is `rate(state)`."""

    def befall(run):
        plan = type("Planned", (type(run.plan),), {"rate": lambda self, state: rate(state)})
        run.plan = plan(**vars(run.plan))

    return befall


def nan_losses(steps):
    """Befalls a run: the losses of these steps, in the order in which they are made, are NaN."""

    def befall(run):
        count = iter(range(10**9))

        def loss(ids, targets):
            summed, correct = run.learner.model.loss(ids, targets)
            return (summed * math.nan if next(count) in steps else summed), correct

        run.learner.loss = loss

    return befall


def rows(config):
    """The rows of metrics.csv."""
    return read_rows(Path(config.out_dir))


def samples(config):
    """The lines of samples.jsonl."""
    return read_samples(Path(config.out_dir))


def load(config, name="best_model.pt"):
    """A checkpoint in the run's folder."""
    return checkpoint.load(Path(config.out_dir) / name)


def final_weights(config):
    """The weights that the run of `config` ends with."""
    assert train(config) == 0
    return load(config, "last.pt").weights


def ticking():
    """A clock that moves by a hundredth of a second whenever it is looked at."""
    ticks = iter(range(10**9))
    return lambda: 0.01 * next(ticks)
