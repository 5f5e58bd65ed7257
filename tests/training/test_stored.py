"""A run's state with other content: one line says what is wrong, whatever it is and wherever it is."""

import copy
import random
from pathlib import Path

import pytest
import torch

from slm.cli import read_flags
from slm.errors import UserError
from slm.training import report
from tests.runs import change, toy_config, train

OTHERS = [None, "x", -1, 10**60, 1.5, float("nan"), [], {}, [1], {"x": 1}, {1: 2}, torch.zeros(3, 3), True, ("a", 1)]


@pytest.fixture(scope="module")
def content(text, tmp_path_factory):
    """What last.pt holds after a run of two steps and two evaluations, with both optimizers."""
    config = change(toy_config(text, tmp_path_factory.mktemp("stored") / "run"), optimizer="muon", max_steps=2)
    assert train(config) == 0
    return torch.load(Path(config.out_dir) / "last.pt", weights_only=True)


def places(value, path=()):
    """The paths of all there is in nested dicts and lists, the outermost first; of long ones the first and the last."""
    keys = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list | tuple) else []
    for key in keys if (len(keys) < 60 and path[-1:] != ("state",)) or len(path) < 3 else [keys[0], keys[-1]]:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def changed(content, path, new):
    """A copy with `new(old)` at `path`; KeyError there: it is taken out."""
    content = copy.deepcopy(content)
    owner = content
    for key in path[:-1]:
        owner = owner[key]
    try:
        value = new(owner[path[-1]])
    except KeyError:
        del owner[path[-1]]
        return content
    if isinstance(owner, tuple):
        return changed(content, path[:-1], lambda old: (*old[: path[-1]], value, *old[path[-1] + 1 :]))
    owner[path[-1]] = value
    return content


def missing(old):
    raise KeyError


def with_a_key_more(old):
    return {**old, "of_a_newer_version": 1} if isinstance(old, dict) else [*old, 1]


def kinds(value):
    """What is done to a value: it is taken out, another one, one of another length, shape or type."""
    yield "missing", missing
    for other in OTHERS:
        yield f"{other!r:.20}", lambda old, other=other: other
    if isinstance(value, dict | list):
        yield "a key more", with_a_key_more
    if isinstance(value, torch.Tensor):
        yield "an int", lambda old: old.long()
        yield "another shape", lambda old: old.new_zeros((*old.shape, 2))
        yield "sparse", lambda old: old.to_sparse()
        yield "of no content", lambda old: old.to("meta")


def at(content, path):
    for key in path:
        content = content[key]
    return content


def cases(content):
    for path in places(content):
        if path[0] not in ("weights", "tokenizer", "model_config", "facts", "format", "version"):  # of any checkpoint
            for kind, new in kinds(at(content, path)):
                if path[-1] in ("max_steps", "epochs", "max_minutes") and kind.startswith("1000"):
                    continue  # is a run without end
                if not (kind == "missing" and isinstance(at(content, path[:-1]), tuple)):
                    yield path, kind, new


def outcome(content, out_dir):
    """What comes of resuming from `content`: the lines of the error, none where it is as good as the real one."""
    (out_dir / "last.pt").unlink(missing_ok=True)
    torch.save(content, out_dir / "last.pt")
    try:
        assert train(read_flags("train", ["--resume", f"--out_dir={out_dir}"])) == 0
    except UserError as error:
        return error.problems
    return ()


def check(content, out_dir, path, kind, new):
    problems = outcome(changed(content, path, new), out_dir)
    for problem in problems:
        assert "\n" not in problem, (path, kind)
        assert len(problem) < 500, (path, kind)
    return problems


SAID = [
    (("training", "of_a_newer_version"), 1, "the run has 'of_a_newer_version', which this program does not know"),
    (("training", "state", "of_a_newer_version"), 1, "state has 'of_a_newer_version', which this program does not"),
    (("of_a_newer_version",), 1, "holds 'of_a_newer_version', which this program does not know: a newer version"),
    (("training", "state", "step"), "x", "step is 'x'"),
    (("training", "state", "rows", 0, "val_loss"), None, "a row of metrics has something else than numbers"),
    (("training", "optimizers"), [], "there are not 2 optimizers"),
    (("training", "optimizers", 1, "state", 0, "momentum_buffer"), torch.zeros(2), "momentum_buffer does not fit"),
    (("training", "optimizers", 0, "state"), {}, "an optimizer's averages are not those of the weights"),
    (("training", "config", "n_layer"), "x", "--n_layer in .* is damaged: 'x'"),
    (("training", "config"), [], "the flags in .* are damaged"),
    (("training", "scaler"), {"x": 1}, "the scaler of fp16 has something else than its numbers"),
    (("training", "corpus"), "x", "the text has changed since"),
]


@pytest.mark.parametrize(("path", "value", "said"), SAID, ids=lambda value: str(value)[:30])
def test_what_is_said(path, value, said, content, tmp_path):
    content = copy.deepcopy(content)
    at(content, path[:-1])[path[-1]] = value
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(UserError, match=said) as error:
        train(read_flags("train", ["--resume", f"--out_dir={tmp_path}"]))
    assert len(error.value.problems) == 1
    assert (tmp_path / "last.pt").exists()


def test_a_flag_that_is_no_more_is_ignored_with_a_line(content, tmp_path, capsys):
    content = changed(content, ("training", "config"), lambda old: {**old, "colour": "red"})
    torch.save(content, tmp_path / "last.pt")
    torch.save({**content, "training": None}, tmp_path / "best_model.pt")
    assert train(read_flags("train", ["--resume", f"--out_dir={tmp_path}", "--max_steps=3"])) == 0
    assert "--colour was red, and is ignored: this program has no such flag" in capsys.readouterr().out


def test_some_places_and_kinds(content, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda *_: None)
    chance = random.Random(0)
    torch.save({**content, "training": None}, tmp_path / "best_model.pt")
    for path, kind, new in chance.sample(list(cases(content)), 40):
        check(content, tmp_path, path, kind, new)


@pytest.mark.slow
def test_more_places_and_kinds(content, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda *_: None)
    torch.save({**content, "training": None}, tmp_path / "best_model.pt")
    chosen = random.Random(1).sample(list(cases(content)), 400)  # of some 3,100, which take an hour
    said = [bool(check(content, tmp_path, *case)) for case in chosen]
    print(f"{len(said)} changed states: {sum(said)} were refused, and {len(said) - sum(said)} resumed")
    assert sum(said) > 300
