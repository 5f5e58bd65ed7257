"""`slm find-lr`: a short run at each of several peak rates, on the same batches from the same weights."""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from slm.checkpoint.open import open_model
from slm.config.fields import command, flags, values_of
from slm.config.model import ModelConfig
from slm.config.train import FindRateConfig, TrainConfig
from slm.data.corpus import prepare
from slm.device import pick_device, pick_precision
from slm.errors import UserError
from slm.files import make_out_dir, user_path
from slm.training import picture
from slm.training.describe import duration
from slm.training.plan import default_rate
from slm.training.run import Clock, Run, assemble
from slm.training.showing import Showing, printable, say
from slm.training.stored import defaults as defaults  # which slm.cli asks for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "learning_rate.png"
CAUTION = "short trials cannot say which rate ends lowest in a long run; it may be a lower one"
BATCHES = 16  # of the validation text, that each trial is measured on


def main(config: FindRateConfig, *, clock: Clock = time.perf_counter) -> None:
    """Print the validation loss after each trial, name the best rate, and plot them. clock: returns seconds."""
    begun = clock()
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    start = open_model(user_path(config.init_from)) if config.init_from is not None else None
    corpus = prepare(config.data, config.model.vocab_size, start.tokenizer if start else None)
    out_dir = user_path(config.out_dir)
    make_out_dir(out_dir)
    plan = assemble(config, corpus, device, dtype, start).plan
    say(f"text       {corpus.description}")
    say(f"trials     {config.trials} of {config.trial_steps:,} steps, {plan.tokens_per_step:,} tokens a step")
    losses = {}
    for trial in range(config.trials):
        rate = plan.peak_rate * 2.0 ** (trial - config.trials // 2)
        trial_config = dataclasses.replace(
            config, learning_rate=rate, batch_size=plan.batch_size, min_lr=0.0,
            max_steps=config.trial_steps, max_minutes=None,
        )  # fmt: skip
        losses[rate] = loss_after_trial(assemble(trial_config, corpus, device, dtype, start))
        say(f"rate {rate:.2e}   validation loss {losses[rate]:.4f}")
    best = min(losses, key=lambda rate: losses[rate])
    if not math.isfinite(losses[best]):
        raise UserError("no rate gave a finite loss: try lower ones around a smaller --learning_rate")
    default, title = _default_rate(config), printable(corpus.description)
    warning = Showing()("picture", _draw, out_dir / PICTURE, losses, default, title)
    edge = ", at the edge: with it given as --learning_rate, this command tries rates around it"
    say(
        f"{warning}best       {best:.2g}{edge if config.trials > 1 and best in (min(losses), max(losses)) else ''}\n"
        f"note       {CAUTION}\n"
        f"took       {duration(clock() - begun)}\n"
        f"picture    {(out_dir / PICTURE).resolve()}\nnext       {_call_of_train(config)} --learning_rate {best:.2g}"
    )


def _call_of_train(config: FindRateConfig) -> str:
    """The command that trains with the flags of `config`; of those that are as by default none is written."""
    usual: dict[str, object] = {name: known.default for name, known in flags(TrainConfig).items()}
    usual |= TrainConfig.defaults(values_of(config))
    elsewhere = {"out_dir", "learning_rate", *(flags(ModelConfig) if config.init_from else ())}
    words = [command("train")]
    for name, value in values_of(config).items():
        if name in usual and name not in elsewhere and value != usual[name]:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words.append(f"--{name} {shlex.quote(text)}")
    return " ".join(words)


def loss_after_trial(run: Run) -> float:
    """Nats per token of validation text after all steps of `run`; infinite where training has broken down."""
    plan, state = run.plan, run.state
    for step in tqdm(range(plan.steps), leave=False, desc=f"rate {plan.peak_rate:.2e}"):
        state.step = step
        batches = [run.batch(number) for number in plan.batches_of(step)]
        outcome = run.learner.step(batches, rate=plan.rate(state), seed=plan.seed_of(step), pieces=state.pieces)
        state.pieces = outcome.pieces
    sequences = BATCHES * plan.sequences // run.config.grad_accum
    loss = run.evaluator.measure(run.learner, "val", sequences).loss
    return loss if math.isfinite(loss) else math.inf


def _default_rate(config: FindRateConfig) -> float:
    """The peak rate of a run that is given none."""
    rate: Any = TrainConfig.defaults(values_of(config)).get("learning_rate", default_rate(config))
    return float(rate)


def _draw(path: Path, losses: dict[float, float], default: float, title: str) -> None:
    picture.save(path, curve(losses, default, title))


def curve(losses: dict[float, float], default: float, title: str) -> Figure:
    """The finite `losses` by rate, with the best and the `default` rate marked; their names cross no curve."""
    figure = picture.new_figure(8, 5, title)
    axes = figure.add_subplot()
    rates = [rate for rate, loss in losses.items() if math.isfinite(loss)]
    best = min(rates, key=lambda rate: losses[rate])
    axes.semilogx(rates, [losses[rate] for rate in rates], "o-", color=picture.BLUE)
    axes.plot(
        best, losses[best], "o", color=picture.VERMILION, markerfacecolor="white", markersize=11, zorder=5,
        label=f"best: {best:.2g}",
    )  # fmt: skip
    axes.axvline(default, linestyle="--", color=picture.GREY, label=f"default: {default:.2g}")
    axes.set(xlabel=f"peak learning rate\n{CAUTION}", ylabel="validation loss after the trial (nats a token)")
    axes.set_xticks(rates, [f"{rate:.2g}" for rate in rates])
    axes.minorticks_off()
    picture.tidy(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
