"""A model goes to the hub and comes back, by the packages of the hub."""

import pytest

import slm
from slm.cli import main

pytest.importorskip("safetensors")


@pytest.fixture
def hub(hub, monkeypatch):
    """The tests' hub, which takes this token."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    return hub


def push(model, *more):
    return main(["export", str(model), "--format", "huggingface", "--push", "me/stories", *more])


def test_there_and_back(hub, trained, tmp_path, capsys):
    assert push(trained, "--out_dir", str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("on the hub   http")
    assert hub.private == {"me/stories"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= hub.revisions["me/stories"][-1].keys()
    assert main(["import", "me/stories", "--out_dir", str(tmp_path / "back")]) == 0
    here, there = slm.load(trained), slm.load(tmp_path / "back")
    assert there.generate("Once upon a time", temperature=0) == here.generate("Once upon a time", temperature=0)
    assert push(trained, "--out_dir", str(tmp_path)) == 0  # again, where it is


def test_without_a_token_the_folder_is_written_and_the_mend_said(hub, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert push(trained, "--out_dir", str(tmp_path)) == 2
    assert "is written, but the hub did not take it (" in capsys.readouterr().err
    assert list(tmp_path.glob("*/config.json"))


def test_what_cannot_be_pushed_is_said_before_anything_is_written(capsys):
    assert main(["export", "no.pt", "--format", "onnx", "--push", "stories"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --push must be owner/name, not 'stories'",
        "error: --push is for --format huggingface, the folder for transformers",
    ]
