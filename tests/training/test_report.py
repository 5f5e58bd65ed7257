"""What a run leaves for people."""

import dataclasses
import math
from pathlib import Path

import pytest

from slm.data.stories import stories
from slm.training import report
from slm.training.describe import duration
from tests.runs import change, new_run, rows, ticking, train


def test_the_picture_is_a_png_of_a_good_size(config):
    train(config)
    content = (Path(config.out_dir) / "training.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    assert width >= 1000
    assert height >= 600


def drawn(plan, losses, *, seconds):
    """The panels of a run of 100 steps: loss, accuracy, rate. losses: of validation, at equal distances."""
    measured = [
        {
            "step": 100 * i / (len(losses) - 1), "seconds": seconds * i / (len(losses) - 1), "rollbacks": 0,
            "learning_rate": 0.001, "train_loss": loss, "val_loss": loss, "train_accuracy": 0.5, "val_accuracy": 0.5,
            "val_bits_per_byte": loss / 3,
        }
        for i, loss in enumerate(losses)
    ]  # fmt: skip
    return report.curves(measured, plan, "book.txt").axes


def test_the_picture_shows_the_peak_of_the_schedule_between_evaluations(config):
    plan = new_run(change(config, max_steps=100, learning_rate=0.005, warmup_steps=10)).plan
    steps, rates = drawn(plan, [7, 1], seconds=60)[2].lines[0].get_data()
    assert (steps[0], steps[-1]) == (0, 100)
    assert rates[0] == pytest.approx(0.0005)
    assert max(rates) == 0.005
    assert rates[-1] == 0


def test_the_axis_of_the_loss_is_that_of_the_last_two_thirds(config):
    plan = new_run(change(config, max_steps=100)).plan
    loss = drawn(plan, [7, 4, 2, 1.5, 1.2, 1.1, 1], seconds=60)[0]
    low, high = loss.get_ylim()
    assert 0.9 < low < 1
    assert 2 < high < 2.2
    assert loss.lines[1].get_label() == "validation, now 1.000"
    assert loss.lines[2].get_label() == "best: 1.000, 0.333 bits per byte"
    assert drawn(plan, [math.nan, math.nan, math.inf], seconds=60)[0].lines[1].get_label() == "validation, now inf"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (90, ["0 s", "15 s", "30 s", "45 s", "60 s", "75 s", "90 s"]),
        (162, ["0 min", "0.5 min", "1 min", "1.5 min", "2 min", "2.5 min"]),
        (18_000, ["0 h", "1 h", "2 h", "3 h", "4 h", "5 h"]),
        (0, ["0 s"]),
    ],
)
def test_the_picture_has_the_time_above_the_steps(config, seconds, shown):
    plan = new_run(change(config, max_steps=100)).plan
    (above,) = drawn(plan, [7, 1], seconds=seconds)[1].child_axes
    assert [label.get_text() for label in above.get_xticklabels()] == shown


def test_the_title_has_the_size_of_the_model_and_the_time(config, monkeypatch):
    titles = []
    monkeypatch.setattr(report, "draw", lambda path, rows, plan, title: titles.append(title.splitlines()[-1]))
    clock = ticking()
    train(config, clock=lambda: 1000 * clock())
    assert titles[-1] == f"13,248 parameters, {duration(rows(config)[-1]['seconds'])}"


def test_tensorboard_shows_what_metrics_hold(config):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = change(config, tensorboard=True, eval_every=4)
    train(config)
    train(change(config, resume=True, max_steps=12))
    shown = reader.EventAccumulator(str(Path(config.out_dir) / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in shown.Scalars("loss/val")]
    assert curve == [(row["step"], pytest.approx(row["val_loss"], rel=1e-5)) for row in rows(config)]
    assert {"loss/train", "accuracy/val", "learning_rate", "gradient_norm", "tokens_per_second"} <= {
        *shown.Tags()["scalars"]
    }


def test_a_dollar_in_a_name_can_be_drawn(config, tmp_path):
    (tmp_path / "a$_$.txt").write_text("<|endoftext|>".join(stories(80)))
    assert train(change(config, data=dataclasses.replace(config.data, dataset=str(tmp_path / "a$_$.txt")))) == 0
