"""best_model.pt: whole, self-explaining, and never run."""

import os
import pickle

import pytest
import torch

from slm.config import ModelConfig
from slm.data.tokenizer import gpt2
from slm.errors import UserError
from slm.model import checkpoint
from slm.model.checkpoint import Checkpoint
from slm.model.gpt import GPT

SHAPE = ModelConfig(context_length=8, n_layer=1, n_head=1, n_embd=4)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = GPT(SHAPE).eval()
    path = tmp_path / "best_model.pt"
    checkpoint.save(path, Checkpoint(SHAPE, model.state_dict(), gpt2(), {"val": {"loss": 1.5}}))
    return path, model


def test_round_trip(saved):
    path, model = saved
    loaded = checkpoint.load(path)
    assert loaded.config == SHAPE
    assert loaded.facts == {"val": {"loss": 1.5}}
    assert loaded.tokenizer.tokens == gpt2().tokens
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(loaded.model()(ids), model(ids), rtol=0, atol=0)


def test_tied_weights_are_stored_once(saved):
    path, model = saved
    assert path.stat().st_size < 1.1 * (4 * sum(p.numel() for p in model.parameters()) + 600_000)


def test_the_file_holds_plain_values_only(saved):
    content = torch.load(saved[0], weights_only=True)
    assert content.keys() == {"format", "version", "model_config", "weights", "tokenizer", "facts"}
    assert content["model_config"]["n_embd"] == 4


def refusal(path):
    with pytest.raises(UserError) as error:
        checkpoint.load(path).model()
    return str(error.value)


def test_no_file_and_a_folder(tmp_path):
    assert "no checkpoint" in refusal(tmp_path / "none.pt")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1, -1000])
def test_a_truncated_file(saved, kept):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:kept])
    assert "not a checkpoint that can be opened safely" in refusal(path)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "write", [lambda what, path: path.write_bytes(pickle.dumps(what)), lambda what, path: torch.save(what, path)]
)
def test_code_in_a_pickle_never_runs(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write({"format": Payload()}, tmp_path / "evil.pt")
    assert "none of which was run" in refusal(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_another_projects_file(tmp_path):
    torch.save({"model": torch.zeros(3)}, tmp_path / "other.pt")
    assert "not a checkpoint of this project" in refusal(tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "other.pt")
    assert "not a checkpoint of this project" in refusal(tmp_path / "other.pt")


def changed(path, **changes):
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return refusal(path)


def test_a_newer_version(saved):
    assert "format version 99; this program reads version 1" in changed(saved[0], version=99)


@pytest.mark.parametrize("part", ["model_config", "tokenizer", "weights", "facts"])
def test_a_part_that_is_no_such_thing(saved, part):
    assert "damaged" in changed(saved[0], **{part: 5})


def test_weights_that_do_not_fit_the_shape(saved):
    assert "do not fit" in changed(saved[0], weights={"token_embedding.weight": torch.zeros(2, 2)})
