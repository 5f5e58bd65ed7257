"""What a run prints: short lines that no terminal breaks within words, and plain ones where there is no terminal."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from slm.training import terminal
from slm.training.describe import advice, continuations, evaluated
from slm.training.terminal import cut, dim, wrapped
from tests.runs import change, new_run, rows, train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tty(monkeypatch):
    """Standard output as a terminal of 40 columns that shows dim text."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def plan(config):
    return new_run(config).plan


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("The fox ran home.", 17, "The fox ran home."),
        ("The fox ran home.", 16, "The fox ran ..."),
        ("The fox ran home.", 15, "The fox ran ..."),
        ("The fox ran home.", 14, "The fox ..."),
        ("The  fox\nran\thome.", 30, "The fox ran home."),
        ("A \033[31mred\033[0m\x07 fox\r", 30, "A [31mred [0m fox"),
        ("abcdefghijklmnopqrstuvwxyz" * 2, 30, "abcdefghijklmnopqrstuvwxyz ..."),
        ("むかしむかしあるところに", 15, "むかしむか ..."),
        ("cafe\u0301 noir", 9, "cafe\u0301 noir"),
        ("ab\u202ecd\u200def", 10, "abcdef"),
        ("", 10, ""),
        ("The fox", 2, "T ..."),
    ],
)
def test_a_text_is_one_line_that_is_cut_at_a_word(text, columns, shown):
    assert cut(text, columns) == shown


def test_lines_are_wrapped_at_words_in_a_terminal(tty):
    line = "files      best_model.pt, last-of-all.pt, metrics.csv in /home/someone/runs/a_rather_long_name"
    assert wrapped(f"{line}\nshort").splitlines() == [
        "files      best_model.pt,",
        "           last-of-all.pt, metrics.csv",
        "           in",
        "           /home/someone/runs/a_rather_long_name",
        "short",
    ]


def test_a_narrow_terminal_has_less_indented(tty, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert wrapped("device     CPU, 2 threads, fp32; about 0.6 GB").splitlines() == [
        "device     CPU, 2",
        "  threads, fp32;",
        "  about 0.6 GB",
    ]


def test_dim_text_is_left_whole_and_plain_where_it_cannot_be_shown(tty, monkeypatch):
    assert dim("a story") == "\033[2ma story\033[0m"
    assert wrapped(dim("x " * 19)) == dim("x " * 19)
    monkeypatch.setenv("NO_COLOR", "1")
    assert dim("a story") == "a story"
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert dim("a story") == "a story"


def test_a_pipe_gets_plain_unbroken_text(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert dim("a story") == "a story"
    assert wrapped("word " * 60) == "word " * 60


def row(step, bits):
    return {"step": step, "seconds": 2.5 * step, "val_bits_per_byte": bits}


def test_an_evaluation_is_a_short_line_and_what_the_model_writes(plan):
    sample = {"prompt": "The fox", "text": " ran\nhome."}
    story = "           The fox ran home."
    several = [row(0, 2.5), row(40, 1.25)]
    by_clock = dataclasses.replace(plan, time_limit=600.0)
    for rows_, plan_, line in (
        ([row(0, 2.5)], plan, "step 0     validation 2.5000 bits per byte; lower is better"),
        (several, plan, "step 40    validation 1.2500 bits per byte, down 1.2500"),
        ([*several, row(1080, 1.375)], plan,
         "step 1,080 validation 1.3750 bits per byte, up 0.1250 (lowest 1.2500)"),
        (several, by_clock, "1 min 40 s validation 1.2500 bits per byte, down 1.2500"),
        ([*several, row(80, float("nan"))], plan, "step 80    validation nan bits per byte"),
    ):  # fmt: skip
        assert evaluated(plan_, rows_, sample) == f"{line}\n{story}"
    assert evaluated(plan, several, {}, 0.012) == ("step 40    validation 1.2500 +- 0.0120 bits per byte, down 1.2500")
    assert evaluated(plan, several, {}) == "step 40    validation 1.2500 bits per byte, down 1.2500"


def test_a_run_that_went_on_after_its_best_model_names_a_better_length(config, plan):
    plan = dataclasses.replace(plan, steps_per_epoch=73.7)
    course = ((0, 10.0), (222, 4.82), (480, 4.9), (737, 5.25))
    rows_ = [{"step": step, "epoch": step / 73.7, "seconds": 0.9 * step, "val_loss": loss} for step, loss in course]
    assert advice(plan, rows_, change(config, max_steps=None, epochs=10)) == (
        "advice     validation was best after 3 of 10 passes; since then the text has been learned by heart. A run "
        "that ends there, its learning rate falling to 0 on the way, takes less time and is better: --epochs 3. "
        "So is more text\n"
    )
    assert "better: --max_steps 222. " in advice(plan, rows_, change(config, max_steps=737))
    assert "better: --max_minutes 3.3. " in advice(plan, rows_, change(config, max_minutes=11, max_steps=None))
    rows_[-1]["val_loss"] = 4.86  # within what a part of the text may differ by
    assert advice(plan, rows_, config) == ""
    rows_[-1]["val_loss"] = 4.8
    assert advice(plan, rows_, config) == ""
    assert advice(plan, rows_[:2], config) == advice(plan, rows_[:1], config) == ""


def test_the_line_of_what_the_model_writes_fits_the_terminal(plan, tty):
    sample = {"prompt": "The fox", "text": " ran over the hill and far away."}
    assert evaluated(plan, [row(0, 2.5)], sample).splitlines()[1] == (
        "\033[2m           The fox ran over the hill ...\033[0m"
    )


def test_continuations_are_of_the_start_the_middle_and_the_end(plan):
    samples = [{"step": step, "seconds": 0.0, "prompt": "One day", "text": f" it was {step}."} for step in range(5)]
    assert continuations(plan, [*samples, {"step": 5, "seconds": 0.0, "prompt": "", "text": ""}]) == (
        '\n"One day" went on:\nstep 0     it was 0.\nstep 2     it was 2.\nstep 4     it was 4.\n'
    )
    assert continuations(plan, samples[:2]).splitlines()[2:] == ["step 0     it was 0.", "step 1     it was 1."]
    assert continuations(plan, samples[:1]) == ""


def test_the_end_of_a_run_repeats_nothing_and_says_where_to_look(config, capsys):
    assert train(change(config, max_steps=40, learning_rate=0.02, eval_every=10)) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert len({*filter(None, lines)}) == len([*filter(None, lines)])
    assert said.count("metrics.csv") == 1
    assert sum(line.startswith(("step 0 ", "step 20 ", "step 40 ")) for line in lines) == 6
    assert lines[-2] == f"watch      python -m slm watch {config.out_dir}"
    assert lines[-1].startswith(f"next       python generate.py --model_path {config.out_dir}/best_model.pt")
    shown = f"{rows(config)[-1]['val_bits_per_byte']:.4f}"
    assert f"           on the whole validation text; {shown} above was on a part of it" in lines


def test_a_loss_measured_on_the_same_text_needs_no_explaining(config, capsys):
    assert train(change(config, eval_batches=10_000)) == 0
    assert "above was on a part" not in capsys.readouterr().out


def test_a_story_that_cannot_be_shown_does_not_cost_the_end(config, capsys):
    def befall(run):
        run.state.samples += [{"text": "a", "prompt": "b"}]

    assert train(config, befall) == 0
    said = capsys.readouterr().out
    assert "warning: no samples (KeyError: 'step')" in said
    assert "\nnext " in said


def test_no_bar_and_no_colour_goes_through_a_pipe(text, tmp_path):
    toy = ["--vocab_size=400", "--context_length=16", "--n_layer=1", "--n_head=2", "--n_embd=16", "--batch_size=4",
           "--max_steps=9", "--eval_every=3", "--precision=fp32", "--device=cpu", "--export=none"]  # fmt: skip
    paths = [f"--dataset={text}", f"--out_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "train.py", *toy, *paths], cwd=ROOT, env=environment, text=True,
                         capture_output=True, check=True)  # fmt: skip
    assert ran.stderr == ""
    assert not re.search("[\r\033]", ran.stdout)
    assert all(len(line) <= 80 for line in ran.stdout.splitlines() if line.startswith(("step", " " * terminal.LABEL)))
