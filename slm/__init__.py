"""A small GPT: from a text file to a model that writes stories.

Importing this package starts nothing and loads no framework; the command line lives in `slm.cli`.

    run = slm.train("book.txt", max_minutes=10, out_dir="runs/book")
    print("Once upon a time" + run.model.generate("Once upon a time"))
    print(slm.evaluate("runs/book", "other.txt").bits_per_byte)
    slm.export("runs/book", "gguf")
    model = slm.load("runs/book")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from slm.api import FinishedRun
    from slm.evaluation.measure import Measures
    from slm.inference.text import TextModel

__version__ = "0.1.0"


def train(dataset: str | os.PathLike[str] | None = None, **flags: Any) -> FinishedRun:
    """Train a model on a text, as `slm train` does; keywords are its flags. `slm.api.train` says more."""
    from slm import api

    return api.train(dataset, **flags)


def evaluate(model_path: str | os.PathLike[str], dataset: str | os.PathLike[str] = "stories", **flags: Any) -> Measures:
    """How well a model predicts a text, as `slm evaluate` says; keywords are its flags. Raises UserError as it does."""
    from slm import api

    return api.evaluate(model_path, dataset, **flags)


def load(model_path: str | os.PathLike[str], **options: Any) -> TextModel:
    """The model in a .pt or .onnx file, a run's folder or one for transformers; `slm.inference.text.load` says more."""
    from slm.inference import text

    return text.load(model_path, **options)


def __getattr__(name: str) -> Any:
    if name == "export":  # the package, which can be called
        return importlib.import_module("slm.export")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
