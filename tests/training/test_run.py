"""A whole run on a toy: what it learns, leaves, refuses and survives."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slm import device
from slm.checkpoint import file as checkpoint
from slm.cli import main as command
from slm.cli import read_flags
from slm.data.corpus import prepare
from slm.data.stories import stories
from slm.errors import UserError
from slm.evaluation.measure import evaluate
from slm.inference.onnx_engine import OnnxEngine
from slm.training import cost, evaluator, report
from slm.training.command import main as train_main
from slm.training.describe import duration, speed
from slm.training.folder import RUN_FILES
from slm.training.guard import Guard
from slm.training.state import State
from tests.runs import (
    CPU,
    change,
    in_step,
    load,
    measure,
    nan_losses,
    new_run,
    rows,
    samples,
    step,
    stopped_at,
    toy_config,
    train,
    with_rates,
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("<|endoftext|>".join(stories(80)))
    return path


@pytest.fixture(autouse=True)
def called_by_script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(evaluator, "SAMPLE_LENGTH", 3)  # a longer one would take most of a test's time


@pytest.fixture
def config(text, tmp_path):
    return toy_config(text, tmp_path / "run")


def final_weights(config):
    assert train(config) == 0
    return load(config, "last.pt").weights


def test_a_run_learns_and_leaves_its_files(config, capsys):
    config = change(config, max_steps=60, learning_rate=0.02, export="onnx")
    assert train(config) == 0
    assert {path.name for path in Path(config.out_dir).iterdir()} == {*RUN_FILES, ".lock", "best_model.onnx"}
    first, last = rows(config)[0], rows(config)[-1]
    assert first["val_loss"] == pytest.approx(math.log(400), abs=0.1)
    assert last["val_loss"] < first["val_loss"] - 1
    assert last["step"] == 60
    assert last["val_perplexity"] == pytest.approx(math.exp(last["val_loss"]), rel=1e-4)
    said = capsys.readouterr().out
    for part in (
        "60 steps",
        "64 tokens a step",
        "vocabulary of 400",
        "fp32",
        "GB of memory",
        "best_model.onnx (",
        "generate.py --model_path",
    ):
        assert part in said


def test_metrics_have_a_row_for_each_evaluation(config):
    train(change(config, eval_every=3))
    assert [row["step"] for row in rows(config)] == [0, 3, 6, 8]
    assert set(rows(config)[0]) == {
        "step", "epoch", "seconds", "learning_rate", "gradient_norm", "tokens_per_second", "skipped_steps", "rollbacks",
        "train_loss", "train_perplexity", "train_accuracy", "train_bits_per_byte",
        "val_loss", "val_perplexity", "val_accuracy", "val_bits_per_byte",
    }  # fmt: skip


def test_the_picture_is_a_png_of_a_good_size(config):
    train(config)
    content = (Path(config.out_dir) / "training.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    assert width >= 1000
    assert height >= 600


def test_best_model_is_the_best_by_validation_not_the_last(config, monkeypatch):
    """With an absurd rate after a good start, the last model is worse than the best."""
    rates = [0.02] * 6 + [0.5] * 6
    train(change(config, max_steps=12, eval_every=2), with_rates(lambda state: rates[state.step]))
    best = min(rows(config), key=lambda row: row["val_loss"])
    assert 0 < best["step"] < 12
    loaded = load(config)
    assert loaded.facts["step"] == best["step"]
    tokens = prepare(config.data, 400)
    measured = evaluate(loaded.model(), tokens.val, tokens.tokenizer, batch_size=4, dtype=torch.float32)
    assert loaded.facts["val"]["loss"] == pytest.approx(measured.loss, rel=1e-5)
    assert measured.tokens == len(tokens.val) - 1
    assert measured.loss < rows(config)[-1]["val_loss"]


def test_patience_stops_a_run_that_gets_no_better(config, monkeypatch, capsys):
    train(change(config, max_steps=50, eval_every=1, patience=3), with_rates(lambda state: 0.0))
    assert rows(config)[-1]["step"] == 3
    said = capsys.readouterr()
    assert "stopped early: 3 evaluations" in said.out + said.err


def test_accumulated_gradients_equal_the_large_batch(config, tmp_path):
    config = change(config, learning_rate=0.01, optimizer="adamw")
    large = change(config, batch_size=8, out_dir=str(tmp_path / "a"))
    small = change(config, batch_size=2, grad_accum=4, out_dir=str(tmp_path / "b"))
    gradients, losses = [], []
    for run in (new_run(large), new_run(small)):
        kept = {}

        def note(*arguments, kept=kept, run=run, **keywords):
            kept.update({name: p.grad.clone() for name, p in run.learner.model.named_parameters()})
            return torch.zeros(())

        (optimizer,) = run.learner.optimizers
        optimizer.step = note
        losses.append(step(run).loss.item())
        gradients.append(kept)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_gradients_are_clipped_and_the_norm_reported(config):
    run = new_run(change(config, grad_clip=0.001, optimizer="adamw"))
    seen = []
    (optimizer,) = run.learner.optimizers
    parameters = list(run.learner.model.parameters())
    optimizer.step = lambda: seen.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
    outcome = step(run)
    assert seen == [pytest.approx(0.001, rel=1e-3)]
    assert outcome.gradient_norm > 0.1


def test_only_matrices_decay(config):
    run = new_run(change(config, optimizer="adamw"))
    (optimizer,) = run.learner.optimizers
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(run.learner.model.parameters()))


def test_muon_takes_the_matrices_of_the_blocks(config):
    run = new_run(change(config, optimizer="muon"))
    adamw, muon = run.learner.optimizers
    (group,) = muon.param_groups
    assert sorted(tuple(p.shape) for p in group["params"]) == 2 * [(16, 16)] + 2 * [(16, 64)] + 2 * [(48, 16)] + 2 * [
        (64, 16)
    ]
    rows_in_training = run.learner.model.rows_in_training
    assert [tuple(p.shape) for p in adamw.param_groups[0]["params"]] == [(rows_in_training, 16), (16, 16)]


def test_muon_learns(config):
    train(change(config, max_steps=60, learning_rate=0.02, optimizer="muon"))
    assert rows(config)[-1]["val_loss"] < math.log(400) - 1


def assert_same(one, other):
    """The same values, bit for bit, in nested dicts and lists of tensors and numbers."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def timeless(config):
    """metrics.csv and samples.jsonl without what the clock decides."""
    clock = ("seconds", "tokens_per_second")
    return [
        [{name: value for name, value in row.items() if name not in clock} for row in table]
        for table in (rows(config), samples(config))
    ]


@pytest.mark.parametrize("stop", [1, 23, 40])  # 40: where an evaluation is due
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "dropout": 0.2},
        {"optimizer": "adamw", "schedule": "cosine", "batch_size": 16, "grad_accum": 2},
        {"optimizer": "muon", "schedule": "wsd", "batch_size": 24, "dropout": 0.1},
    ],
)
def test_stopped_and_resumed_equals_undisturbed_to_the_bit(config, tmp_path, changes, stop, monkeypatch, capsys):
    """With 16 or 24 windows a step an epoch ends in the middle of the run."""
    config = change(config, max_steps=50, eval_every=10, **changes)
    undisturbed = change(config, out_dir=str(tmp_path / "undisturbed"))
    train(undisturbed)
    assert "passes" in capsys.readouterr().out
    assert train(config, stopped_at(stop)) == 128 + signal.SIGINT
    assert f"after step {stop}; to continue: python train.py --resume --out_dir" in capsys.readouterr().out
    train(dataclasses.replace(config, resume=True))
    one, other = load(undisturbed, "last.pt"), load(config, "last.pt")
    assert_same(dict(one.weights), dict(other.weights))
    assert_same(one.training["optimizers"], other.training["optimizers"])
    assert timeless(undisturbed) == timeless(config)
    best = [(Path(each.out_dir) / "best_model.pt").read_bytes() for each in (undisturbed, config)]
    assert best[0] == best[1]


@pytest.mark.parametrize("stop", [20, 21])
def test_stopped_at_an_evaluation_it_is_made_on_resume(config, stop, monkeypatch, tmp_path):
    config = change(config, max_steps=60)
    final_weights(change(config, out_dir=str(tmp_path / "undisturbed")))
    undisturbed = rows(change(config, out_dir=str(tmp_path / "undisturbed")))
    assert train(config, stopped_at(stop, signal.SIGTERM)) == 128 + signal.SIGTERM
    final_weights(dataclasses.replace(config, resume=True))
    for name in ("step", "learning_rate", "gradient_norm", "val_loss"):
        assert [row[name] for row in rows(config)] == [row[name] for row in undisturbed], name


def test_a_longer_run_goes_on_evaluating(config):
    train(change(config, max_steps=30))
    train(change(config, max_steps=90, resume=True))
    assert len([row for row in rows(config) if 30 < row["step"] < 90]) >= 2


def test_another_way_to_give_the_length_replaces_the_old_one(config):
    train(config)
    resumed = read_flags("train", ["--resume", "--out_dir", config.out_dir, "--max_minutes", "1"])
    assert (resumed.max_steps, resumed.max_minutes) == (None, 1.0)


def test_resume_alone_continues_with_the_flags_of_the_run(config, monkeypatch):
    train(config)
    resumed = read_flags("train", ["--resume", "--out_dir", config.out_dir, "--max_steps", "12"])
    assert resumed == dataclasses.replace(config, resume=True, max_steps=12)
    assert command(["train", "--resume", "--out_dir", config.out_dir, "--max_steps", "12"]) == 0
    assert rows(config)[-1]["step"] == 12


def test_what_must_not_change_on_resume_is_refused_by_name(config):
    train(config)
    with pytest.raises(UserError) as error:
        train(change(config, resume=True, batch_size=8, n_layer=3))
    assert "--batch_size was 4 and cannot become 8 in a resumed run" in error.value.problems
    assert "--n_layer was 2 and cannot become 3 in a resumed run" in error.value.problems


def test_a_changed_rate_and_length_are_taken_and_told(config, capsys):
    train(config)
    capsys.readouterr()
    assert train(change(config, resume=True, learning_rate=0.001, max_steps=12)) == 0
    said = capsys.readouterr().out
    assert "--learning_rate was None, and is 0.001 from here on" in said
    assert "--max_steps was 8, and is 12 from here on" in said
    assert load(config, "last.pt").training["config"]["learning_rate"] == 0.001


def test_a_second_signal_stops_at_once_and_what_was_saved_is_whole(config):
    train(change(config, max_steps=4))

    def twice():
        signal.raise_signal(signal.SIGINT)  # to this thread: two that another one got late would count as one
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(change(config, resume=True), in_step(7, twice))
    assert load(config, "last.pt").facts["step"] == 4


def ticking():
    """A clock that moves by a hundredth of a second whenever it is looked at."""
    ticks = iter(range(10**9))
    return lambda: 0.01 * next(ticks)


def test_a_run_by_the_clock_goes_on_with_the_time_that_was_left(config):
    config = change(config, max_steps=None, max_minutes=0.1)
    assert train(config, stopped_at(15), clock=ticking()) == 130
    used = load(config, "last.pt").training["state"]["seconds"]
    assert 0.5 < used < 4
    train(dataclasses.replace(config, resume=True), clock=ticking())
    assert used < rows(config)[-1]["seconds"] <= 6.1
    assert load(config, "last.pt").facts["step"] > 15


def test_a_broken_last_state_gives_way_to_the_one_before(config, capsys):
    train(config)
    train(change(config, resume=True, max_steps=12))
    path = Path(config.out_dir) / "last.pt"
    path.write_bytes(path.read_bytes()[:-2000])
    (before,) = [load(config, name).facts["step"] for name in ("last.previous.pt",)]
    assert before == 8
    assert train(change(config, resume=True, max_steps=14)) == 0
    assert "note: " in (said := capsys.readouterr().out)
    assert "last.pt is not a checkpoint that can be opened" in said
    assert "going on from last.previous.pt" in said
    assert "resuming   after step 8" in said
    path.write_bytes(b"")
    (path.parent / "last.previous.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"last\.pt is not a checkpoint that can be opened"):
        train(change(config, resume=True))


def test_a_second_run_in_the_same_folder_is_refused(config):
    """flock is held by an open file, not by a process: a second opening is refused within one process, too."""

    def second():
        with pytest.raises(UserError, match=rf"another run is at work in .* \(process {os.getpid()}\): wait for it"):
            train(change(config, resume=True))

    assert train(config, in_step(4, second)) == 0


def test_the_lock_of_a_process_that_is_gone_is_no_lock(config):
    out_dir = Path(config.out_dir)
    out_dir.mkdir()
    program = (
        "import os, sys, time; from pathlib import Path; from slm.files import locked\n"
        "with locked(Path(sys.argv[1]), 'busy', 'or not'):\n    os.kill(os.getpid(), 9)"
    )
    code = subprocess.run([sys.executable, "-c", program, str(out_dir / ".lock")]).returncode
    assert code == -signal.SIGKILL
    assert (out_dir / ".lock").read_text().strip().isdigit()
    assert train(config) == 0


LOSSES = [
    6.0033, 5.9210, 5.7712, 5.5935, 5.3711, 5.2009, 4.9287, 4.8384, 4.7287, 4.6733,
    4.5565, 4.5439, 4.4698, 4.5686, 4.6798, 4.6834, 4.3783, 4.7136, 4.5873, 4.4791,
]  # fmt: skip


def test_the_mathematics_is_what_it_was(config):
    """The mean loss of each of 20 steps, as literal numbers: no change of the code changes them unseen."""
    run = new_run(
        change(config, optimizer="muon", dropout=0.1, batch_size=8, grad_accum=2, learning_rate=0.02, max_steps=20)
    )
    losses = [float(step(run).loss) for _ in range(20)]
    assert losses == pytest.approx(LOSSES, abs=2e-4)


def test_a_changed_text_is_refused_on_resume(config, tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("<|endoftext|>".join(stories(80)))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset=str(path)))
    train(config)
    path.write_text("<|endoftext|>".join(stories(81)))
    with pytest.raises(UserError, match="the text has changed"):
        train(dataclasses.replace(config, resume=True))


def test_nothing_to_resume(config):
    with pytest.raises(UserError, match="nothing to resume"):
        train(dataclasses.replace(config, resume=True))


def test_a_run_is_never_overwritten_unasked(config):
    train(config)
    before = {name: (Path(config.out_dir) / name).read_bytes() for name in RUN_FILES}
    with pytest.raises(UserError, match=r"already holds a run .*--resume.*--overwrite.*--out_dir"):
        train(config)
    assert before == {name: (Path(config.out_dir) / name).read_bytes() for name in RUN_FILES}
    assert train(change(config, overwrite=True, max_steps=3)) == 0
    assert rows(config)[-1]["step"] == 3


def test_a_bad_text_costs_an_old_run_nothing(config, tmp_path):
    train(config)
    (tmp_path / "short.txt").write_text("Too short.")
    data = dataclasses.replace(config.data, dataset=str(tmp_path / "short.txt"))
    with pytest.raises(UserError, match="too short"):
        train(change(config, overwrite=True, data=data))
    assert (Path(config.out_dir) / "best_model.pt").exists()


def test_a_text_that_is_too_short_is_refused_with_the_figures(config, tmp_path):
    (tmp_path / "short.txt").write_text("one two three four five six seven eight nine ten")
    data = dataclasses.replace(config.data, dataset=str(tmp_path / "short.txt"))
    with pytest.raises(
        UserError, match=r"8 tokens to train on \(and 3 to validate\).*--context_length 16 needs at least 17"
    ):
        train(change(config, data=data, vocab_size=50_257))


def test_a_run_by_the_clock_ends_in_time_and_its_rate_runs_down(config):
    """A clock that moves a fixed bit at every look makes the run's time exact."""
    rates = []

    def note_rates(run):
        learner_step = run.learner.step

        def noting(batches, *, rate, **more):
            rates.append(rate)
            return learner_step(batches, rate=rate, **more)

        run.learner.step = noting

    train(change(config, max_steps=None, max_minutes=0.1, learning_rate=0.01), note_rates, clock=ticking())
    last = rows(config)[-1]
    assert last["seconds"] == pytest.approx(6.0, abs=1.5)  # some of the time is kept for the validation at the end
    assert last["seconds"] <= 6.1
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates.index(max(rates)) <= 0.25 * len(rates)
    assert rates[-1] < 0.0005
    assert len(rows(config)) >= 5


@pytest.mark.parametrize("steps", [100, 1000, 30_000])
def test_evaluations_take_under_5_percent_by_default(config, steps):
    run = new_run(change(config, max_steps=steps, eval_batches=None))
    plan = run.plan
    forward_passes = 2 * (plan.evaluations + 1) * plan.evaluation_sequences * plan.grad_accum / plan.sequences
    assert forward_passes / 3 < 0.05 * steps
    assert plan.evaluations >= min(20, steps // 30)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 2), (60, 12), (216, 20), (1000, 50)])
def test_warm_up_is_a_twentieth_of_the_run_but_no_less_than_a_short_one_needs(config, steps, warmup):
    plan = new_run(change(config, max_steps=steps, learning_rate=0.01)).plan
    rates = [plan.rate(State(step=step)) for step in range(steps)]
    assert rates[0] == pytest.approx(0.01 / warmup)
    assert rates.index(max(rates)) in (warmup - 1, warmup)
    assert max(rates) == pytest.approx(0.01, rel=0.01)


def test_a_loss_that_is_no_number_stops_with_an_explanation(config):
    with pytest.raises(
        UserError, match=r"step .*: .* NaN or infinite, after 3 returns .*: try a --learning_rate below 1e\+30"
    ):
        train(change(config, learning_rate=1e30, grad_clip=0.0, warmup_steps=0))
    assert load(config).facts["step"] == 0
    assert all(weight.isfinite().all() for weight in load(config, "last.pt").weights.values())


def test_a_nan_gradient_changes_nothing(config):
    train(change(config, eval_every=4), nan_losses({2, 5}))
    assert [(row["step"], row["skipped_steps"], row["rollbacks"]) for row in rows(config)] == [
        (0, 0, 0), (4, 1, 0), (8, 2, 0)
    ]  # fmt: skip
    assert math.isfinite(rows(config)[-1]["val_loss"])


def test_a_run_whose_gradients_stay_broken_goes_back_and_on_with_half_the_rate(config, capsys):
    def befall(run):
        nan_losses(range(30, 50))(run)
        save = run.keeper.save
        run.keeper.save = lambda: save() if run.state.step in (0, 30, 60) else None

    config = change(config, max_steps=60, eval_every=30, schedule="wsd", warmup_steps=0, save_every=1e-9)
    train(config, befall)
    said = "".join(capsys.readouterr())
    assert "step 50: the gradient was NaN or infinite 20 times in a row; back to step 30, with half the" in said
    before, after = rows(config)[1:]
    assert (before["step"], after["step"], after["skipped_steps"], after["rollbacks"]) == (30, 60, 20, 1)
    config = change(config, resume=True, overwrite=False, max_steps=1000)
    run = new_run(config, start=load(config, "last.pt"))
    assert run.state.rollbacks == 1
    assert run.plan.rate(run.state) == pytest.approx(0.5 * run.plan.peak_rate)


def test_a_loss_that_rises_by_more_than_a_nat_is_a_breakdown():
    state = State()
    guard = Guard(state, CPU)
    for number, loss_sum, trouble in [
        (20, 20 * 4.0, ""),
        (39, 19 * 9.0, ""),  # too early to tell
        (40, 20 * 4.9, ""),
        (60, 20 * 5.1, "the loss rose from 4.00 to 5.10"),
    ]:
        state.step = number
        guard.loss_sum.fill_(loss_sum)
        assert guard.trouble(final=False) == trouble


def test_skipped_steps_alone_are_trouble_too():
    """Not so many in a row, but no step between two checks that could be judged by."""
    state = State(step=40, skipped=30, skipped_in_a_row=10, checked_step=20, checked_skipped=10)
    assert Guard(state, CPU).trouble(final=False) == "the gradient was NaN or infinite in all of the last 20 steps"


def test_patience_does_not_count_from_a_model_that_could_not_be_saved(config):
    """Each model is better than the one before, but none can be saved after the first."""

    def befall(run):
        save_best = run.keeper.save_best

        def refused(*arguments):
            if run.state.step > 0:
                raise UserError("the disk is full")
            save_best(*arguments)

        run.keeper.save_best = refused

    with pytest.raises(UserError, match="the disk is full"):  # at the end
        train(change(config, max_steps=50, eval_every=10, patience=3, learning_rate=0.02), befall)
    assert [row["step"] for row in rows(config)] == [0, 10, 20, 30]


def test_an_overflow_storm_in_fp16_goes_back_and_stops_in_the_end(config):
    with pytest.raises(UserError, match=r"step 20: the gradient was NaN .* 20 times in a row, after 2 returns"):
        train(change(config, max_steps=100, max_rollbacks=2), nan_losses(range(10**6)), dtype=torch.float16)


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_too_little_memory_halves_what_is_computed_at_a_time_and_changes_no_result(config, grad_accum, capsys):
    config = change(config, grad_accum=grad_accum, dropout=0.0)
    whole = change(config, out_dir=config.out_dir + "-whole")
    train(whole)
    sizes = []

    def small(run):
        def loss(ids, targets):
            sizes.append(len(ids))
            if len(ids) > 1:
                raise RuntimeError(
                    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
                )
            return run.learner.model.loss(ids, targets)

        run.learner.loss = loss

    train(config, small)
    assert [row["val_loss"] for row in rows(config)] == pytest.approx(
        [row["val_loss"] for row in rows(whole)], rel=1e-5
    )
    assert sizes == [4, 2] + [1] * (4 * grad_accum * 8)
    said = "".join(capsys.readouterr())
    assert said.count("not enough memory for 4 sequences at a time: 1 from here on, with equal results") == 1


def test_too_little_memory_for_a_single_sequence_is_an_error(config):
    def befall(run):
        run.learner.loss = none

    def none(*_):
        raise MemoryError

    with pytest.raises(MemoryError):  # slm.cli has the words: tests/test_cli.py
        train(config, befall)


def test_compiling_falls_back_with_one_line(config, monkeypatch, capsys):
    def broken(function):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda function: lambda *_: broken(function))
    assert train(change(config, compile="on")) == 0
    said = capsys.readouterr().out
    assert "torch.compile does not work here (RuntimeError: no compiler); training goes on without it\n" in said


@pytest.mark.parametrize("how", [{"resume": True, "max_steps": 20}, {"overwrite": True}])
def test_a_disk_that_refuses_loses_nothing(config, how):
    """No file may grow beyond 40 kB, which best_model.pt and last.pt do."""
    resource = pytest.importorskip("resource")
    train(config)
    before = {name: (Path(config.out_dir) / name).read_bytes() for name in ("best_model.pt", "last.pt")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*: File too large; what was there stays"):
            train(change(config, **how))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert before == {name: (Path(config.out_dir) / name).read_bytes() for name in before}


def test_a_picture_that_cannot_be_written_does_not_stop_the_run(config, monkeypatch, capsys):
    def refused(*_):
        raise UserError("cannot write training.png: Permission denied")

    monkeypatch.setattr(report, "draw", refused)
    assert train(config) == 0
    assert "warning: cannot write training.png" in capsys.readouterr().out


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


def test_deterministic_asks_pytorch_for_it(config):
    train(change(config, deterministic=True))
    try:
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_dollar_in_a_name_can_be_drawn(config, tmp_path):
    (tmp_path / "a$_$.txt").write_text("<|endoftext|>".join(stories(80)))
    assert train(change(config, data=dataclasses.replace(config.data, dataset=str(tmp_path / "a$_$.txt")))) == 0


def test_training_on_the_built_in_stories_says_so(config, capsys):
    train(change(config, data=dataclasses.replace(config.data, dataset="stories"), max_steps=1))
    assert "training on the built-in stories; --dataset takes a text of yours" in capsys.readouterr().out


def test_an_out_dir_that_is_a_file(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make --out_dir"):
        train(change(config, out_dir=str(tmp_path / "file")))


def test_fp16_on_a_cpu_and_a_missing_gpu_are_refused(config):
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        train(change(config, precision="fp16"))
    with pytest.raises(UserError, match=r"--min_lr 1.0 is above the peak rate, 0.096"):
        train(change(config, min_lr=1.0))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"--device cuda is not available .*; there is: "):
            train_main(change(config, device="cuda", precision="fp32"))


def test_an_overflow_in_fp16_lets_no_optimizer_step(config):
    run = new_run(change(config, optimizer="muon"), torch.float16)
    before = {name: weight.clone() for name, weight in run.learner.model.state_dict().items()}
    hook = run.learner.model.blocks[0].mlp.up.weight.register_hook(lambda gradient: gradient * math.inf)
    scale = run.learner.scaler.get_scale()
    step(run)
    assert all(torch.equal(weight, before[name]) for name, weight in run.learner.model.state_dict().items())
    assert run.learner.scaler.get_scale() == scale / 2
    hook.remove()
    step(run)
    changed = [not torch.equal(weight, before[name]) for name, weight in run.learner.model.state_dict().items()]
    assert all(changed)
    assert all(weight.isfinite().all() for weight in run.learner.model.state_dict().values())


def test_fp16_learns_as_fp32_does(config):
    losses = []
    for dtype in (torch.float32, torch.float16):
        run = new_run(change(config, learning_rate=0.02, overwrite=True, max_steps=30), dtype)
        for _ in range(30):
            step(run)
        losses.append(measure(run).loss)
    assert losses[0] < math.log(400) - 1
    assert losses[1] == pytest.approx(losses[0], abs=0.1)


@pytest.mark.parametrize("seconds", [(1.0, 2.0, torch.bfloat16), (1.0, 1.2, torch.float32), (2.0, 1.0, torch.float32)])
def test_auto_takes_bf16_on_a_cpu_only_where_it_is_clearly_faster(seconds, monkeypatch):
    bf16, fp32, expected = seconds
    monkeypatch.setattr(device, "_seconds", lambda dtype: {torch.bfloat16: bf16, torch.float32: fp32}[dtype])
    assert device.pick_precision("auto", CPU) is expected


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_other_precisions_learn_alike(config, precision):
    train(change(config, max_steps=60, learning_rate=0.02, precision=precision))
    assert rows(config)[-1]["val_loss"] < math.log(400) - 1


def test_twice_the_same_run_gives_the_same_bits_from_any_folder(config, tmp_path, monkeypatch):
    one, other = change(config, out_dir=str(tmp_path / "a")), change(config, out_dir=str(tmp_path / "b"))
    first = final_weights(one)
    monkeypatch.chdir(tmp_path)
    second = final_weights(other)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    different = final_weights(change(config, out_dir=str(tmp_path / "c"), seed=1))
    assert not torch.equal(first["token_embedding.weight"], different["token_embedding.weight"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (59.4, "59 s"), (162, "2 min 42 s"), (720, "12 min"), (3599, "1 h 00 min"), (11_100, "3 h 05 min")],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


def test_the_exported_model_is_the_best_one(config, monkeypatch):
    train(change(config, export="onnx,torchscript"))
    onnx, best = OnnxEngine(Path(config.out_dir) / "best_model.onnx"), load(config)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = best.model()(ids).numpy()
    assert abs(onnx.all_logits(ids.numpy()) - expected).max() < 1e-4
    assert onnx.facts["step"] == best.facts["step"]
    assert (Path(config.out_dir) / "best_model.torchscript.pt").exists()


@pytest.mark.parametrize("error", [UserError("the disk is full"), RuntimeError(""), MemoryError("9 TB")])
def test_a_failing_export_never_costs_the_run(config, error, monkeypatch, capsys):
    def broken(*_):
        raise error

    monkeypatch.setattr("slm.export.onnx.write", broken)
    assert train(change(config, export="onnx,torchscript")) == 0
    said = capsys.readouterr().out
    assert f"warning: {'onnx: ' if isinstance(error, UserError) else ''}{str(error) or 'RuntimeError'}" in said
    again = f"python export.py --model_path {config.out_dir}/best_model.pt --format onnx\n"
    assert f"the run is safe, and to try again: {again}" in said
    files = {path.name for path in Path(config.out_dir).iterdir()}
    assert files == {*RUN_FILES, ".lock", "best_model.torchscript.pt"}


def test_an_old_export_goes_when_a_new_run_has_its_first_model(config, monkeypatch):
    train(change(config, export="onnx"))
    old = Path(config.out_dir) / "best_model.onnx"

    def killed():
        raise RuntimeError("killed")

    assert old.exists()
    with pytest.raises(RuntimeError, match="killed"):
        train(change(config, export="onnx", overwrite=True), in_step(1, killed))
    assert not old.exists()


def test_an_export_that_is_there_is_not_overwritten_unasked(config):
    Path(config.out_dir).mkdir()
    (Path(config.out_dir) / "best_model.gguf").write_text("somebody's")
    with pytest.raises(UserError, match=r"already holds a run \(best_model\.gguf\)"):
        train(config)
    assert (Path(config.out_dir) / "best_model.gguf").read_text() == "somebody's"


def going_on_from(config, path, *more):
    """The config of a run that goes on from the model in `path`, as the command line makes it."""
    names = ("precision", "device", "max_steps", "batch_size", "eval_batches", "export")
    given = [f"--{name}={getattr(config, name)}" for name in names]
    data = [f"--dataset={config.data.dataset}", f"--cache_dir={config.data.cache_dir}", "--val_fraction=0.1"]
    return read_flags("train", [*given, *data, f"--out_dir={config.out_dir}", f"--init_from={path}", *more])


def test_a_run_goes_on_from_a_model_with_its_shape_and_tokenizer(config, trained, monkeypatch):
    config = going_on_from(config, trained)
    assert (config.model.n_layer, config.model.vocab_size, config.model.context_length) == (2, 400, 64)
    assert train(config) == 0
    assert rows(config)[0]["val_loss"] < 2.5  # it need not learn again
    assert load(config).tokenizer.tokens == checkpoint.load(trained).tokenizer.tokens
    assert load(config).facts["config"]["init_from"] == str(trained)


def test_a_run_that_went_on_from_a_model_is_resumed_without_it(config, trained, tmp_path, monkeypatch):
    first = tmp_path / "first.pt"
    first.write_bytes(trained.read_bytes())
    whole = final_weights(going_on_from(config, first, f"--out_dir={tmp_path / 'whole'}"))
    config = going_on_from(config, first)
    assert train(config, stopped_at(3)) == 130
    first.unlink()
    again = read_flags("train", ["--resume", f"--out_dir={config.out_dir}"])
    assert train(again) == 0
    for name, weight in load(config, "last.pt").weights.items():
        assert torch.equal(weight, whole[name])


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("--n_layer=3", "--n_layer 3: the model of --init_from has 2, which cannot be changed"),
        ("--vocab_size=500", "--vocab_size 500: the model of --init_from has 400"),
        ("--tokenizer=bpe", "--init_from and --tokenizer exclude each other"),
    ],
)
def test_what_a_model_to_go_on_from_decides(config, trained, flag, part):
    with pytest.raises(UserError) as error:
        going_on_from(config, trained, flag)
    assert [part in problem for problem in error.value.problems] == [True]
    assert going_on_from(config, trained, "--dropout=0.2", "--n_layer=2").model.dropout == 0.2


def test_a_missing_model_to_go_on_from(config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        going_on_from(config, tmp_path / "none.pt")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_changes_no_gradient(config, precision):
    gradients = []
    for on in (False, True):
        run = new_run(change(config, activation_checkpointing=on, dropout=0.1, precision=precision))
        torch.manual_seed(1)
        run.learner.model.loss(*run.batch(0))[0].backward()
        gradients.append({name: p.grad for name, p in run.learner.model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_activation_checkpointing_keeps_less(config):
    kept = []
    for on in (False, True):
        run = new_run(change(config, activation_checkpointing=on))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t):
            run.learner.model.hidden(run.batch(0)[0])
        kept.append(sum(saved))
    assert kept[1] < 0.5 * kept[0]


def test_profile_writes_a_trace_and_says_where_the_time_goes(config, capsys):
    train(change(config, profile=True, max_steps=9))
    said = "".join(capsys.readouterr())
    for part in ("forward and loss", "backward", "optimizer", "aten::", "trace.json"):
        assert part in said
    events = json.loads((Path(config.out_dir) / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "backward" and event.get("cat") == "user_annotation" for event in events) == 5


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"epochs": 1.0}, 96),  # never fewer than 1,536 tokens
        ({"epochs": 2000.0}, 512),  # 29 million tokens: 1,536 sqrt(29) of 16
        ({"epochs": 2000.0, "grad_accum": 4}, 128),
        ({"max_steps": 1000}, 128),  # 1,536^2 1,000 / 10^6 = 2,359 tokens
    ],
)
def test_the_batch_grows_with_the_run(config, changes, windows):
    length = {"max_steps": None, **changes}
    run = new_run(change(config, batch_size=None, **length))
    assert run.plan.batch_size == windows
    assert run.batch(0)[0].shape == (windows, 16)


def test_a_resumed_run_keeps_its_batch_size(config, monkeypatch):
    config = change(config, batch_size=None, max_steps=4)
    monkeypatch.setattr(cost, "pick_batch_size", lambda *_: 6)
    train(config)
    monkeypatch.setattr(cost, "pick_batch_size", lambda *_: 7)
    saved = load(config, "last.pt")
    assert new_run(change(config, resume=True), start=saved).plan.batch_size == 6


def test_speed_counts_the_rows_in_use(config):
    run = new_run(config)
    shape, in_use = run.learner.model.config, run.learner.model.rows_in_training
    # 2 blocks of 12 C^2 and the rows, six times; attention 12 L C T
    assert cost.flops_per_token(shape, in_use) == 6 * (2 * 12 * 16**2 + in_use * 16) + 12 * 2 * 16 * 16
    said = speed(run.learner, [{"tokens_per_second": speed} for speed in (0.0, 1000.0, 3000.0, 2000.0)])
    assert said.startswith("2,000 tokens/s, ")
    assert "MFU unknown" in said


def test_all_tokens_have_weights_in_the_checkpoint(config):
    train(config)
    weights = load(config).weights["token_embedding.weight"]
    assert weights.shape == (400, 16)
    run = new_run(change(config, overwrite=True))
    shape, in_use = run.learner.model.config, run.learner.model.rows_in_training
    assert in_use < 400
    weights = sum(weight.numel() for weight in load(config).weights.values())
    assert cost.in_training(shape, shape.vocab_size) == (weights, 2 * 12 * 16**2 + 400 * 16)
    assert cost.in_training(shape, in_use)[0] == sum(weight.numel() for weight in run.learner.model.parameters())


def test_a_run_of_another_version_is_refused(config):
    train(config)
    path = Path(config.out_dir) / "last.pt"
    content = torch.load(path, weights_only=True)
    del content["training"]["rows"], content["training"]["batch_size"]
    torch.save(content, path)
    with pytest.raises(UserError, match="the program has changed since"):
        train(change(config, resume=True))


def test_the_memory_estimate_counts_what_there_is(config):
    run = new_run(change(config, optimizer="adamw"))
    shape, in_use = run.learner.model.config, run.learner.model.rows_in_training
    few, many = (cost.memory_estimate(run.config, shape, in_use, batch, torch.float32) for batch in (4, 8))
    # 64 tokens more: their logits, and 18 vectors of each of 2 layers, 2 of the stream and 4 around it
    assert many - few == 64 * in_use * 4 + 64 * 16 * 4 * (18 * 2 + 2 + 4)
    lean = change(config, activation_checkpointing=True)
    less, more = (cost.memory_estimate(lean, shape, in_use, batch, torch.float32) for batch in (4, 8))
    assert more - less < many - few
