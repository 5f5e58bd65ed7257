"""`slm find-lr`: a short run at each of several peak rates, on the same batches from the same weights."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from tqdm import tqdm

from slm.checkpoint.open import open_model
from slm.config.fields import command
from slm.config.train import FindRateConfig
from slm.data.corpus import prepare
from slm.device import pick_device, pick_precision
from slm.errors import UserError
from slm.files import replacing, user_path
from slm.training.run import Run, assemble
from slm.training.stored import defaults as defaults  # which slm.cli asks for

PICTURE = "learning_rate.png"
BATCHES = 16  # of the validation text, that each trial is measured on


def main(config: FindRateConfig) -> None:
    """Print the validation loss after each trial, name the best rate, and plot them."""
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    start = open_model(user_path(config.init_from)) if config.init_from is not None else None
    corpus = prepare(config.data, config.model.vocab_size, start.tokenizer if start else None)
    out_dir = user_path(config.out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make --out_dir {out_dir}: {error.strerror}") from error
    plan = assemble(config, corpus, device, dtype, start).plan
    print(f"text       {corpus.description}")
    print(f"trials     {config.trials} of {config.trial_steps:,} steps, {plan.tokens_per_step:,} tokens a step")
    losses = {}
    for trial in range(config.trials):
        rate = plan.peak_rate * 2.0 ** (trial - config.trials // 2)
        trial_config = dataclasses.replace(
            config, learning_rate=rate, batch_size=plan.batch_size, min_lr=0.0,
            max_steps=config.trial_steps, max_minutes=None,
        )  # fmt: skip
        losses[rate] = loss_after_trial(assemble(trial_config, corpus, device, dtype, start))
        print(f"rate {rate:.2e}   validation loss {losses[rate]:.4f}", flush=True)
    best = min(losses, key=lambda rate: losses[rate])
    if not math.isfinite(losses[best]):
        raise UserError("no rate gave a finite loss: try lower ones around a smaller --learning_rate")
    _draw(out_dir / PICTURE, losses, corpus.description)
    edge = ", at the edge: with it given as --learning_rate, this command tries rates around it"
    print(
        f"best       {best:.2g}{edge if config.trials > 1 and best in (min(losses), max(losses)) else ''}\n"
        f"picture    {(out_dir / PICTURE).resolve()}\nnext       {command('train')} --learning_rate {best:.2g}"
    )


def loss_after_trial(run: Run) -> float:
    """Nats per token of validation text after all steps of `run`; infinite where training has broken down."""
    plan, state = run.plan, run.state
    for step in tqdm(range(plan.steps), leave=False, desc=f"rate {plan.peak_rate:.2e}"):
        state.step = step
        batches = [run.batch(number) for number in plan.batches_of(step)]
        outcome = run.learner.step(batches, rate=plan.rate(state), seed=plan.seed_of(step), pieces=state.pieces)
        state.pieces = outcome.pieces
    sequences = BATCHES * plan.sequences // plan.grad_accum
    loss = run.evaluator.measure(run.learner, "val", sequences).loss
    return loss if math.isfinite(loss) else math.inf


def _draw(path: Path, losses: dict[float, float], title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates = [rate for rate, loss in losses.items() if math.isfinite(loss)]
    axes.semilogx(rates, [losses[rate] for rate in rates], "o-", color="#c1440e")
    best = min(rates, key=lambda rate: losses[rate])
    axes.annotate(f"best: {best:.2g}", (best, losses[best]), xytext=(0, 14), textcoords="offset points", ha="center")
    axes.set(xlabel="peak learning rate", ylabel="validation loss after the trial (nats a token)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
