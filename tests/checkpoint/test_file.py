"""best_model.pt: whole, self-explaining, and never run."""

import os
import pickle

import numpy as np
import pytest
import torch

from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.cli import main
from slm.config.model import ModelConfig
from slm.data.tokenizer import gpt2
from slm.device import peak_memory
from slm.errors import UserError
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_head", 3), ("n_head", 0), ("n_head", None), ("n_layer", 2), ("n_layer", 10**9), ("n_layer", 0),
        ("dropout", "x"), ("dropout", 2.0), ("vocab_size", "a"), ("vocab_size", 300), ("context_length", -1),
        ("n_embd", 2.5), ("n_embd", 8), ("bias", False), ("attention", 5),
    ],
)  # fmt: skip
def test_a_shape_that_is_not_that_of_the_weights(saved, field, value):
    shape = torch.load(saved[0], weights_only=True)["model_config"]
    said = changed(saved[0], model_config={**shape, field: value})
    assert "is damaged" in said
    assert "\n" not in said


def test_weights_in_half_precision_are_read_as_fp32(saved):
    path, _ = saved
    content = torch.load(path, weights_only=True)
    weights = {name: weight.bfloat16() for name, weight in content["weights"].items()}
    torch.save({**content, "weights": weights}, path)
    assert {weight.dtype for weight in checkpoint.load(path).weights.values()} == {torch.float32}


def test_flipped_bits_never_end_in_a_traceback(saved):
    """Flips in weights may stay unseen; all others are one line."""
    path, _ = saved
    whole, said = path.read_bytes(), []
    random = np.random.default_rng(0)
    places = [*random.integers(len(whole), size=40), *random.integers(len(whole) - 9000, len(whole), size=80)]
    for place, bit in zip(places, random.integers(8, size=120), strict=True):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(bit)
        path.write_bytes(damaged)
        try:
            checkpoint.load(path).model()
        except UserError as error:
            said.append(str(error))
    assert len(said) > 5
    assert not [line for line in said if "\n" in line]


@pytest.mark.parametrize("name", ["m.onnx", "m.torchscript.pt", "m.pt2", "m.gguf", "m.int8.ONNX"])
def test_an_export_is_called_one(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 100)
    assert "is an export (" in refusal(tmp_path / name)
    assert "give the checkpoint, such as best_model.pt" in refusal(tmp_path / name)


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(saved, monkeypatch):
    """As a run replaces best_model.pt under whoever reads it: what was checked is what is loaded."""
    path, model = saved
    right = checkpoint.check_records

    def then_replaced(file, only=""):
        right(file)
        checkpoint.save(path, Checkpoint(SHAPE, GPT(SHAPE).state_dict(), gpt2(), {"val": {"loss": 1.0}}))

    monkeypatch.setattr(checkpoint, "check_records", then_replaced)
    loaded = checkpoint.load(path)
    assert loaded.facts == {"val": {"loss": 1.5}}
    assert torch.equal(loaded.weights["token_embedding.weight"], model.token_embedding.weight)


def rewritten(path, change):
    """The file at `path` with another content, as whoever makes one by hand can write it."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def with_one_number_for_all(content):
    content["weights"]["position_embedding.weight"] = torch.zeros(1).expand(1 << 30, 4)


def with_a_large_one_in_the_state(content):
    content["training"] = {"optimizers": [{"state": {0: {"exp_avg": torch.zeros(1).expand(1 << 33)}}}]}


def with_the_same_numbers_many_times(content):
    content["training"] = {"optimizers": [torch.zeros(1 << 16)] * 10_000}


def with_a_weight_of_no_numbers(content):
    content["weights"]["position_embedding.weight"] = torch.zeros(8, 4, device="meta")


def with_more_integers(content):
    content["weights"]["more"] = torch.zeros(4, dtype=torch.int64)


def with_a_number_for_a_name(content):
    content["weights"][5] = torch.zeros(4)


def with_a_sparse_weight(content):
    content["weights"]["position_embedding.weight"] = torch.zeros(8, 4).to_sparse()


def with_a_list_in_itself(content):
    content["facts"]["list"] = []
    content["facts"]["list"].append(content["facts"]["list"])
    content["weights"]["more"] = torch.zeros(4)


def with_a_width_that_has_more_divisors_than_can_be_tried(content):
    content["model_config"].update(n_embd=10**15, n_head=7)


def with_a_billion_layers(content):
    content["model_config"]["n_layer"] = 10**9


def with_long_tokens(content):
    state = content["tokenizer"]
    state["lengths"] = torch.cat([state["lengths"][:-1], torch.tensor([65_536, 0], dtype=torch.int32)])
    state["bytes"] = torch.cat([state["bytes"], torch.full([65_536], 97, dtype=torch.uint8)])


@pytest.mark.parametrize(
    "change",
    [
        with_one_number_for_all,
        with_a_large_one_in_the_state,
        with_the_same_numbers_many_times,
        with_a_weight_of_no_numbers,
        with_more_integers,
        with_a_number_for_a_name,
        with_a_sparse_weight,
        with_a_list_in_itself,
        with_a_billion_layers,
        with_a_width_that_has_more_divisors_than_can_be_tried,
        with_long_tokens,
    ],
)
def test_a_strangers_file_is_one_line_and_never_fills_the_memory(saved, change):
    path, _ = saved
    rewritten(path, change)
    before = peak_memory(torch.device("cpu"))
    said = refusal(path)
    assert "\n" not in said
    assert str(path) in said
    assert peak_memory(torch.device("cpu")) < before + 500_000_000


@pytest.mark.parametrize(
    ("central", "local", "value"),
    [(8, 6, 1), (6, 4, 99), (10, 8, 99)],
    ids=["encrypted", "of a later version of zip", "compressed in another way"],
)
def test_an_archive_that_zipfile_cannot_read_is_one_line(saved, central, local, value, capsys):
    """Fields of each record's entry, and of the record itself; opened as the commands do."""
    path, _ = saved
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x01\x02", central), (b"PK\x03\x04", local)):
        at = content.find(mark)
        while at >= 0:
            content[at + place] = value
            at = content.find(mark, at + 4)
    path.write_bytes(content)
    assert main(["generate", "--model_path", str(path)]) == 2
    assert f"error: {path} is not a checkpoint that can be opened safely: " in capsys.readouterr().err
    assert main(["import", str(path), "--out_dir", str(path.parent / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
