"""The files of a run that people read: metrics.csv, samples.jsonl and training.png."""

from __future__ import annotations

import bisect
import csv
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slm.config.fields import python
from slm.errors import UserError
from slm.evaluation.measure import Measures
from slm.files import replacing
from slm.training import picture
from slm.training.plan import Plan
from slm.training.showing import printable
from slm.training.state import COLUMNS, State

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 2000  # of the learning rate's curve at most
UNITS = (("h", 3600), ("min", 60))  # of the time above the curves

Row = Mapping[str, float]


def row(*, train: Measures, val: Measures, **place: float) -> dict[str, float]:
    """One report: where the run is, by column name, and both splits' measures."""
    measures = {
        f"{split}_{name}": getattr(measured, name)
        for split, measured in (("train", train), ("val", val))
        for name in ("loss", "perplexity", "accuracy", "bits_per_byte")
    }
    return {**place, **measures}


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """`rows` as CSV with a header, whole or not at all."""
    with replacing(path, "w") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
        )


def write_samples(path: Path, samples: Sequence[Mapping[str, object]]) -> None:
    """A line of JSON for each sample, whole or not at all."""
    with replacing(path, "w") as file:
        file.writelines(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples)


def tensorboard(folder: Path, rows: Sequence[Row]) -> Callable[[Row], None]:
    """A function that adds a row to the curves in `folder`, where `rows` are already. Raises UserError without it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise UserError(
            f"--tensorboard needs the package tensorboard: {python()} -m pip install tensorboard"
        ) from error

    if folder.is_symlink():
        raise UserError(f"{folder} is a link, through which nothing is written: remove it")
    purge_step = int(rows[-1]["step"]) + 1 if rows else 0
    writer = functools.cache(lambda: SummaryWriter(str(folder), purge_step=purge_step))  # made with the first row

    def add(row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                split, _, measure = name.partition("_")
                tag = f"{measure}/{split}" if split in ("train", "val") else name
                writer().add_scalar(tag, value, int(row["step"]))
        writer().flush()

    return add


def draw(path: Path, rows: Sequence[Row], plan: Plan, title: str) -> None:
    """The run at a glance, as a picture: see `curves`."""
    picture.save(path, curves(rows, plan, title))


def curves(rows: Sequence[Row], plan: Plan, title: str) -> Figure:
    """Loss and accuracy of both splits, and the learning rate, over steps, with the time on a second axis.

    The axis of the loss is that of the last two thirds of the run: its first fall is cut off above.
    """
    steps = [row["step"] for row in rows]
    figure = picture.new_figure(11, 7, printable(title))
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    loss, accuracy = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    rate = figure.add_subplot(grid[1, :])
    for split, name, colour, style in (
        ("train", "training", picture.BLUE, "--"), ("val", "validation", picture.VERMILION, "-"),
    ):  # fmt: skip
        nats = [row[f"{split}_loss"] for row in rows]
        percent = [100 * row[f"{split}_accuracy"] for row in rows]
        loss.plot(steps, nats, style, color=colour, marker=".", label=f"{name}, now {nats[-1]:.3f}")
        accuracy.plot(steps, percent, style, color=colour, marker=".", label=f"{name}, now {percent[-1]:.1f} %")
    best = min(rows, key=lambda row: row["val_loss"])
    loss.plot(
        best["step"], best["val_loss"], "o", color=picture.VERMILION, markerfacecolor="white", markersize=9, zorder=5,
        label=f"best: {best['val_loss']:.3f}, {best['val_bits_per_byte']:.3f} bits per byte",
    )  # fmt: skip
    late = [row[name] for row in rows if row["step"] >= steps[-1] / 3 for name in ("train_loss", "val_loss")]
    late = [value for value in (*late, best["val_loss"]) if math.isfinite(value)]
    if len(late) > 2 and max(late) > min(late):
        margin = 0.08 * (max(late) - min(late))
        loss.set_ylim(min(late) - margin, max(late) + margin)
    loss.set(title="loss (nats a token; lower is better)")
    accuracy.set(title="next token guessed right (%; higher is better)", ylim=(0, None))
    rate.plot(*_scheduled(rows, plan), color=picture.GREY)
    rate.plot([step - 1 for step in steps[1:]], [row["learning_rate"] for row in rows[1:]], ".", color=picture.GREY)
    rate.set(title="learning rate (line: by the schedule; dots: as used)", ylim=(0, None))
    for axes in (loss, accuracy):
        axes.legend(edgecolor="none", framealpha=0.8)
    for axes in (loss, accuracy, rate):
        picture.tidy(axes)
        axes.set(xlabel="step", xlim=(0, 1.03 * max(1, steps[-1])))
        _add_time(axes, rows)
    return figure


def _scheduled(rows: Sequence[Row], plan: Plan) -> tuple[list[float], list[float]]:
    """Steps from the first to the last of `rows`, and the rate that the plan has for each at its time."""
    at, seconds = [row["step"] for row in rows], [row["seconds"] for row in rows]
    steps = sorted({round(step) for step in np.linspace(0, at[-1], POINTS)})
    rates = []
    for step in steps:
        row = rows[min(bisect.bisect_right(at, step), len(rows) - 1)]  # the evaluation after it
        state = State(step=step, seconds=float(np.interp(step, at, seconds)), rollbacks=int(row["rollbacks"]))
        rates.append(plan.rate(state))
    return [float(step) for step in steps], rates


def _add_time(axes: Axes, rows: Sequence[Row]) -> None:
    """A second axis, above, with the time at which a step was made."""
    from matplotlib.ticker import MaxNLocator

    last = rows[-1]["seconds"]
    unit, size = next(((unit, size) for unit, size in UNITS if last > 2 * size), ("s", 1))
    times = [time for time in MaxNLocator(6).tick_values(0, last / size) if 0 <= time <= last / size]
    at = np.interp([time * size for time in times], [row["seconds"] for row in rows], [row["step"] for row in rows])
    above = axes.secondary_xaxis("top")
    above.set_xticks(at, [f"{time:g} {unit}" for time in times])
    above.spines["top"].set_visible(False)
    above.tick_params(length=3, labelsize=8, colors=picture.GREY)
