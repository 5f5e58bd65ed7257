"""The loop: what a run learns, how often it is evaluated, when it ends."""

import dataclasses
import gc
import json
import math
from pathlib import Path

import pytest
import torch

from slm.data.corpus import prepare
from slm.data.stories import stories
from slm.evaluation.measure import evaluate
from slm.training.folder import RUN_FILES
from tests.runs import change, final_weights, load, measure, nan_losses, new_run, rows, step, ticking, train, with_rates


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


def test_the_plan_says_what_is_read_and_held_out(config, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"id": 1, "story": text}) for text in stories(40)))
    config = change(config, max_steps=1, data=dataclasses.replace(config.data, dataset=str(folder)))
    assert train(config) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    size = (folder / "a.jsonl").stat().st_size
    assert lines[:3] == [f"text 1 file, {size / 1000:.1f} kB: a.jsonl", "field: story", "left out: test.jsonl"]
    assert lines[3] == "tokens 6,976 to train on, 1,324 to validate (15.0 % held out); 1.80 bytes each"


def test_metrics_have_a_row_for_each_evaluation(config):
    train(change(config, eval_every=3))
    assert [row["step"] for row in rows(config)] == [0, 3, 6, 8]
    assert set(rows(config)[0]) == {
        "step", "epoch", "seconds", "learning_rate", "gradient_norm", "tokens_per_second", "skipped_steps", "rollbacks",
        "train_loss", "train_perplexity", "train_accuracy", "train_bits_per_byte",
        "val_loss", "val_perplexity", "val_accuracy", "val_bits_per_byte",
    }  # fmt: skip


def test_the_training_loss_is_that_of_the_steps_since_the_last_evaluation(config):
    """Skipped steps have none; the untrained model's is measured, as there are no steps before it."""
    losses, accuracies = [], []

    def note_outcomes(run):
        nan_losses({5})(run)
        step = run.learner.step

        def noting(*batches, **more):
            outcome = step(*batches, **more)
            losses.append(float(outcome.loss))
            accuracies.append(float(outcome.accuracy))
            return outcome

        run.learner.step = noting

    train(change(config, eval_every=4, learning_rate=0.02), note_outcomes)
    before, early, late = rows(config)
    assert before["train_loss"] == pytest.approx(math.log(400), abs=0.1)
    assert early["train_loss"] == pytest.approx(sum(losses[:4]) / 4, rel=1e-5)
    assert early["train_accuracy"] == pytest.approx(sum(accuracies[:4]) / 4, rel=1e-5)
    assert math.isnan(losses[5])
    assert late["train_loss"] == pytest.approx((losses[4] + losses[6] + losses[7]) / 3, rel=1e-5)
    assert late["train_perplexity"] == pytest.approx(math.exp(late["train_loss"]), rel=1e-4)
    tokens = prepare(config.data, 400).train
    bits = late["train_loss"] / math.log(2) * len(tokens) / tokens.text_bytes
    assert late["train_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert load(config).facts["step"] == 8


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


def test_muon_learns(config):
    train(change(config, max_steps=60, learning_rate=0.02, optimizer="muon"))
    assert rows(config)[-1]["val_loss"] < math.log(400) - 1


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


def test_fp16_learns_as_fp32_does(config):
    losses = []
    for dtype in (torch.float32, torch.float16):
        run = new_run(change(config, learning_rate=0.02, overwrite=True, max_steps=30), dtype)
        for _ in range(30):
            step(run)
        losses.append(measure(run).loss)
    assert losses[0] < math.log(400) - 1
    assert losses[1] == pytest.approx(losses[0], abs=0.1)


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


def test_profile_writes_a_trace_and_says_where_the_time_goes(config, capsys):
    train(change(config, profile=True, max_steps=9))
    said = "".join(capsys.readouterr())
    for part in ("forward and loss", "backward", "optimizer", "aten::", "trace.json"):
        assert part in said
    events = json.loads((Path(config.out_dir) / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "backward" and event.get("cat") == "user_annotation" for event in events) == 5


def test_garbage_is_looked_for_at_evaluations_alone(config, monkeypatch):
    """In the middle of a step it would make a GPU and other processes wait. Steps leave none."""
    looked, steps = [], []
    collect = gc.collect
    monkeypatch.setattr(gc, "collect", lambda *_: looked.append(len(steps)) or collect())

    def befall(run):
        saw = run.guard.saw

        def noting(outcome):
            saw(outcome)
            steps.append((gc.isenabled(), collect()))

        run.guard.saw = noting

    assert gc.isenabled()
    train(change(config, eval_every=4), befall)
    assert steps[1:] == [(False, 0)] * 3 + [steps[4]] + [(False, 0)] * 3
    assert not any(on for on, _ in steps)
    assert [each for each in looked if each] == [4, 8, 8], "the last time at the end"
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
