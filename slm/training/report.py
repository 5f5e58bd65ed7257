"""What a run leaves for people: metrics.csv, samples.jsonl and training.png."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from slm.errors import UserError
from slm.evaluation.measure import Measures
from slm.files import replacing

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
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
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
        raise UserError("--tensorboard needs the package tensorboard: python -m pip install tensorboard") from error

    writer = SummaryWriter(str(folder), purge_step=int(rows[-1]["step"]) + 1 if rows else 0)

    def add(row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                split, _, measure = name.partition("_")
                writer.add_scalar(f"{measure}/{split}" if split in ("train", "val") else name, value, int(row["step"]))
        writer.flush()

    return add


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """The run at a glance: loss and accuracy of both splits, and the learning rate, over steps; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, parse_math=False)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    loss, accuracy, rate = (
        figure.add_subplot(grid[0, 0]),
        figure.add_subplot(grid[0, 1]),
        figure.add_subplot(grid[1, :]),
    )
    best = min(rows, key=lambda row: row["val_loss"])
    for split, colour, style in (("train", "#7a9cc6", "--"), ("val", "#c1440e", "-")):
        name = {"train": "training", "val": "validation"}[split]
        last = rows[-1]
        loss.plot(
            steps,
            [row[f"{split}_loss"] for row in rows],
            style,
            color=colour,
            marker=".",
            label=f"{name}, now {last[f'{split}_loss']:.3f}",
        )
        percent = [100 * row[f"{split}_accuracy"] for row in rows]
        accuracy.plot(steps, percent, style, color=colour, marker=".", label=f"{name}, now {percent[-1]:.1f} %")
    loss.plot(best["step"], best["val_loss"], "o", color="#c1440e", markerfacecolor="white", markersize=10, zorder=5)
    loss.annotate(
        f"best: {best['val_loss']:.3f}\n{best['val_bits_per_byte']:.3f} bits per byte",
        (best["step"], best["val_loss"]),
        xytext=(-8, 28), textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    loss.set(title="loss (nats a token; lower is better)", xlabel="step")
    accuracy.set(title="next token guessed right (%; higher is better)", xlabel="step", ylim=(0, None))
    rate.plot(steps, [row["learning_rate"] for row in rows], color="#555555")
    rate.set(title="learning rate", xlabel="step", ylim=(0, None))
    for axes in (loss, accuracy):
        axes.legend(frameon=False)
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(left=0)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
