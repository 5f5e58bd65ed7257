"""A run that was stopped goes on as if it had not been."""

import dataclasses
import signal
from pathlib import Path

import pytest
import torch

from slm.cli import main as command
from slm.cli import read_flags
from slm.data.stories import stories
from slm.errors import UserError
from slm.training import cost
from tests.runs import change, final_weights, load, new_run, rows, samples, stopped_at, ticking, train


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


def test_a_resumed_run_keeps_its_batch_size(config, monkeypatch):
    config = change(config, batch_size=None, max_steps=4)
    monkeypatch.setattr(cost, "pick_batch_size", lambda *_: 6)
    train(config)
    monkeypatch.setattr(cost, "pick_batch_size", lambda *_: 7)
    saved = load(config, "last.pt")
    assert new_run(change(config, resume=True), start=saved).plan.batch_size == 6


def test_a_run_of_another_version_is_refused(config):
    train(config)
    path = Path(config.out_dir) / "last.pt"
    content = torch.load(path, weights_only=True)
    del content["training"]["rows"], content["training"]["batch_size"]
    torch.save(content, path)
    with pytest.raises(UserError, match="the program has changed since"):
        train(change(config, resume=True))
