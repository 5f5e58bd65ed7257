"""`slm find-lr`."""

import dataclasses
import math
import re
import shlex
import sys

import pytest

from slm.cli import read_flags
from slm.errors import UserError
from slm.training import find_rate
from slm.training.find_rate import main

TINY = [
    "--dataset=stories", "--vocab_size=400", "--context_length=16", "--n_layer=2", "--n_head=2", "--n_embd=16",
    "--batch_size=4", "--precision=fp32", "--device=cpu", "--trial_steps=40", "--learning_rate=0.01",
]  # fmt: skip


@pytest.fixture
def config(tmp_path, text_of_stories):
    arguments = [f"--dataset={text_of_stories}", f"--cache_dir={tmp_path / 'cache'}", f"--out_dir={tmp_path / 'out'}"]
    return read_flags("find-lr", [*TINY[1:], *arguments])


@pytest.fixture
def text_of_stories(tmp_path):
    from slm.data.stories import stories

    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(stories(80)))
    return path


def test_finds_the_best_of_the_rates(config, tmp_path, capsys):
    main(dataclasses.replace(config, trials=3, learning_rate=0.01))
    said = capsys.readouterr().out
    tried = {float(rate): float(loss) for rate, loss in re.findall(r"rate (\S+)   validation loss (\S+)", said)}
    assert list(tried) == [0.005, 0.01, 0.02]
    best = float(re.search(r"best       ([\d.e+-]+)", said)[1])
    assert tried[best] == min(tried.values())
    assert f"--learning_rate {best:.2g}" in said
    assert (tmp_path / "out" / "learning_rate.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("", ""),
        ("--dataset 'my book.txt' --out_dir runs --trials 3 --preset tiny", " --preset tiny --dataset 'my book.txt'"),
        ("--n_layer 3 --bias false --max_minutes 3", " --n_layer 3 --bias false --max_minutes 3.0"),
    ],
)
def test_the_call_of_train_has_what_was_given(given, written, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    call = find_rate._call_of_train(read_flags("find-lr", shlex.split(given)))
    assert call == f"python train.py{written}"


def test_the_same_twice_and_how_long_it_took(config, capsys):
    config = dataclasses.replace(config, trials=2)
    main(config, clock=iter([5, 105]).__next__)
    first = capsys.readouterr().out
    assert "\ntook       1 min 40 s\n" in first
    main(config, clock=iter([5, 105]).__next__)
    assert capsys.readouterr().out == first


def test_the_picture_marks_the_best_and_the_default_rate():
    figure = find_rate.curve({0.001: 3.0, 0.002: 2.5, 0.004: 2.7, 0.008: math.inf}, 0.004, "book.txt")
    measured, best, default = figure.axes[0].lines
    assert list(measured.get_xdata()) == [0.001, 0.002, 0.004]
    assert (best.get_xdata(), best.get_ydata()) == ([0.002], [2.5])
    assert list(default.get_xdata()) == [0.004, 0.004]
    assert [label.get_text() for label in figure.legends[0].get_texts()] == ["best: 0.002", "default: 0.004"]
    figure.canvas.draw()
    legend, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert legend.y1 <= panel.y0  # below all curves


def test_rates_that_break_the_model(config):
    with pytest.raises(UserError, match="no rate gave a finite loss"):
        main(dataclasses.replace(config, trials=2, learning_rate=1e30))


@pytest.mark.parametrize(
    ("given", "rate"),
    [("", 0.004), ("--optimizer adamw --n_embd 768", 0.0005), ("--preset tiny --n_embd 768 --learning_rate 1", 0.005)],
)
def test_the_default_rate_is_that_of_the_preset_or_follows_from_the_width(given, rate):
    assert find_rate._default_rate(read_flags("find-lr", given.split())) == rate


def test_flags_that_change_nothing_are_refused_together(capsys):
    given = "--export none --patience=3 --resume --eval_every 5 --trials 0"
    with pytest.raises(UserError) as error:
        read_flags("find-lr", given.split())
    assert sorted(error.value.problems) == [
        "--eval_every changes nothing in find-lr: leave it out",
        "--export changes nothing in find-lr: leave it out",
        "--patience changes nothing in find-lr: leave it out",
        "--resume changes nothing in find-lr: leave it out",
        "--trials must be at least 1, not 0",
    ]
    with pytest.raises(SystemExit):
        read_flags("find-lr", ["--help"])
    shown = capsys.readouterr().out
    assert "--patience" not in shown
    assert "--max_minutes" in shown


@pytest.mark.parametrize("flag", ["--trials=0", "--trial_steps=0"])
def test_bad_flags(flag):
    with pytest.raises(UserError, match=flag.split("=")[0]):
        read_flags("find-lr", [flag])
