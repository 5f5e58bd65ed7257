"""A model from whichever place a user names."""

from __future__ import annotations

from pathlib import Path

from slm.checkpoint.file import Checkpoint, load
from slm.checkpoint.file import model_config as config_in_file
from slm.config.model import ModelConfig
from slm.files import find_model


def open_model(path: Path) -> Checkpoint:
    """The checkpoint in a file or a run's folder, or what a transformers folder or nanoGPT's ckpt.pt becomes.

    Raises UserError as `load` does.
    """
    from slm.checkpoint import nanogpt, transformers

    path = find_model(path)
    if path.is_dir():
        return transformers.load(str(path))
    return nanogpt.load(path) if nanogpt.is_one(path) else load(path)


def model_config(path: Path) -> ModelConfig:
    """The shape of the model that `open_model` would give, without reading its weights, but for nanoGPT's."""
    from slm.checkpoint import nanogpt, transformers

    path = find_model(path)
    if path.is_dir():
        return transformers.shape_of(str(path))
    return nanogpt.load(path).config if nanogpt.is_one(path) else config_in_file(path)
