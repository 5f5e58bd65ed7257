"""A run's folder may come from a stranger: its state names files to read and a folder to write to."""

import dataclasses
import stat
from pathlib import Path

import pytest
import torch

from slm.checkpoint import file as checkpoint
from slm.cli import main, read_flags
from slm.errors import UserError
from slm.training import trust
from tests.runs import train


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "KEY", str(tmp_path / "home/key"))
    return tmp_path / "home"


def changed(config, **settings):
    """The run's last.pt with other flags in it, as whoever makes one by hand can write."""
    path = f"{config.out_dir}/last.pt"
    content = torch.load(path, weights_only=True)
    content["training"]["config"].update(settings)
    torch.save(content, path)


def refused(config, *more):
    with pytest.raises(UserError) as error:
        read_flags("train", ["--resume", "--out_dir", config.out_dir, *more])
    return list(error.value.problems)


def test_a_users_own_run_needs_no_paths(config, home):
    train(config)
    assert read_flags("train", ["--resume", "--out_dir", config.out_dir]).data == config.data
    assert stat.S_IMODE((home / "key").stat().st_mode) == 0o600


def test_the_paths_of_anothers_run_must_be_given(config, home, tmp_path):
    train(config)
    (home / "key").unlink()
    text, cache = config.data.dataset, config.data.cache_dir
    before = f"the run in {config.out_dir} was not started by you on this machine, and names"
    mend = "give this flag yourself, with the path that is meant"
    assert refused(config) == [f"--dataset: {before} {text!r}: {mend}", f"--cache_dir: {before} {cache!r}: {mend}"]
    assert refused(config, "--dataset", text) == [f"--cache_dir: {before} {cache!r}: {mend}"]
    paths = ["--dataset", text, "--cache_dir", cache]
    assert read_flags("train", ["--resume", "--out_dir", config.out_dir, *paths]).data == config.data


def test_changed_paths_of_ones_own_run_must_be_given(config, tmp_path):
    train(config)
    changed(config, dataset="/etc/passwd", cache_dir=str(tmp_path / "mine"))
    assert len(refused(config)) == 2
    assert "'/etc/passwd'" in refused(config)[0]
    assert not (tmp_path / "mine").exists()
    changed(config, dataset="stories", cache_dir="~/.cache/slm")  # the defaults can harm nobody
    assert read_flags("train", ["--resume", "--out_dir", config.out_dir]).data.dataset == "stories"


@pytest.mark.parametrize(
    ("name", "value"), [("n_layer", "2"), ("dataset", 5), ("dataset", None), ("epochs", [1]), ("resume_from", 5)]
)
def test_flags_of_another_kind_than_their_own(config, capsys, name, value):
    train(config)
    changed(config, **{name: value})
    assert main(["train", "--resume", "--out_dir", config.out_dir]) == (0 if name == "resume_from" else 2)
    assert name == "resume_from" or f"error: --{name} in {config.out_dir}/last.pt is damaged" in capsys.readouterr().err


def test_a_text_that_has_moved_is_the_same_text(config, tmp_path, capsys):
    train(config)
    moved = tmp_path / "elsewhere" / Path(config.data.dataset).name
    moved.parent.mkdir()
    moved.write_bytes(Path(config.data.dataset).read_bytes())
    data = dataclasses.replace(config.data, dataset=str(moved))
    again = dataclasses.replace(config, resume=True, max_steps=config.max_steps + 1, data=data)
    assert train(again) == 0
    assert f"--dataset was {config.data.dataset}, and is {moved} from here on" in capsys.readouterr().out
    moved.write_text("another text " * 1000)
    with pytest.raises(UserError, match="text"):
        train(again)


def test_without_a_home_the_paths_must_be_given(config, monkeypatch):
    monkeypatch.setattr(trust, "KEY", "/dev/null/key")
    train(config)
    assert checkpoint.training_header(Path(config.out_dir) / "last.pt")["stamp"] == ""
    assert len(refused(config)) == 2
