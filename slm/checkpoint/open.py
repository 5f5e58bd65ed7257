"""A model from whichever place a user names."""

from __future__ import annotations

from pathlib import Path

from slm.checkpoint.file import Checkpoint, load
from slm.checkpoint.file import model_config as config_in_file
from slm.config.model import ModelConfig
from slm.files import find_model


def open_model(path: Path) -> Checkpoint:
    """The checkpoint in a file or a run's folder, or what a transformers folder becomes. Raises UserError as `load`."""
    from slm.checkpoint import transformers

    path = find_model(path)
    return transformers.load(str(path)) if path.is_dir() else load(path)


def model_config(path: Path) -> ModelConfig:
    """The shape of the model that `open_model` would give, without reading its weights where it lies in a file."""
    path = find_model(path)
    return open_model(path).config if path.is_dir() else config_in_file(path)
