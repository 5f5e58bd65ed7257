"""Data sets of the Hugging Face hub, which is replaced by a made-up one."""

from pathlib import Path

import pytest

from slm.data import hub as module
from slm.data.sources import open_source, validation_source
from slm.errors import UserError
from tests.data.conftest import joined, read, refusal


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set of three splits, owner/name; the calls it gets."""
    import datasets

    splits = {
        "train": [{"text": "one", "n": 1}, {"text": None, "n": 2}, {"text": "two", "n": 3}],
        "valid": [{"story": "three", "n": 1}],
        "test": [{"text": "four"}],
    }
    calls = []

    def load_dataset(name, split=None, streaming=False):
        calls.append((name, split))
        assert streaming
        if name == "owner/broken":
            raise ValueError("Config name is missing.\nPlease pick one")
        if split is not None and split not in splits:
            raise ValueError(f"Bad split: {split}. Available splits: {list(splits)}")
        if name == "owner/train_only":
            return {"train": splits["train"]}
        return splits if split is None else splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(module, "_check_connection", lambda: None)
    return calls


def test_hub_data_sets(here, hub):
    source = open_source("owner/name")
    assert hub == [], "the hub is asked when the text is read"
    assert source.description == "hub data set owner/name, split train"
    assert source.size_bytes is None
    assert joined(source.pieces()) == joined(source.pieces()) == ["one", "two"]
    assert hub == [("owner/name", "train")] * 2
    assert read("owner/name", held_out=True) == ["three"]
    no_field = "no field 'body' in hub data set owner/name, split train; it has: text, n; choose one with --text_field"
    assert refusal("owner/name", text_field="body") == no_field


def test_validation_splits(here, hub):
    source = validation_source("owner/name")
    assert source.description == "hub data set owner/name, split valid"
    assert joined(source.pieces()) == ["three"]
    assert validation_source("owner/train_only") is None
    assert open_source("owner/train_only", held_out=True).description == "hub data set owner/train_only, split train"
    assert validation_source("owner/name").fingerprint != open_source("owner/name").fingerprint


def test_tinystories_and_its_validation_split(here, hub):
    assert read("tinystories") == ["one", "two"]
    assert hub == [("roneneldan/TinyStories", "train")]
    hub.clear()
    assert validation_source("tinystories").description == "hub data set roneneldan/TinyStories, split validation"
    assert hub == []


def test_what_the_hub_refuses(here, hub):
    assert "Config name is missing; download" in refusal("owner/broken")
    with pytest.raises(UserError, match="Config name is missing; download"):
        validation_source("owner/broken")


def test_names_that_look_like_paths_are_not_looked_for_on_the_hub(here, hub):
    Path("data").mkdir()
    for dataset in ("data/story", "other/story.txt", "./owner", "a/b/c"):
        assert refusal(dataset).startswith(f"no file or folder {dataset}: ")
    assert hub == []


def test_without_a_network_the_hub_is_given_up_soon(here, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("would try again for half a minute"))
    message = refusal("tinystories")
    assert message.startswith("cannot read roneneldan/TinyStories from the hub, and there is no such path here: ")
    assert "the hub does not answer (" in message
    assert message.endswith("; download a text file elsewhere and pass its path, or pass --dataset stories")
