"""A toy text and a toy run, for the tests of training."""

import sys

import pytest

from slm.data.stories import stories
from slm.training import evaluator
from tests.runs import toy_config


@pytest.fixture(scope="session")
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
