"""A run that goes on from a model."""

import dataclasses

import pytest
import torch

from slm.checkpoint import file as checkpoint
from slm.cli import read_flags
from slm.errors import UserError
from tests.runs import final_weights, load, rows, stopped_at, train


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
    whole = final_weights(dataclasses.replace(going_on_from(config, first), out_dir=str(tmp_path / "whole")))
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
