"""A small GPT: from a text file to a model that writes stories.

Importing this package starts nothing and loads no framework; the command line lives in `slm.cli`.

    model = slm.load("best_model.pt")
    print(model.generate("Once upon a time"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from slm.inference.text import TextModel

__version__ = "0.1.0"


def load(model_path: str | Path, **options: Any) -> TextModel:
    """The model in a .pt or .onnx file, a run's folder or one for transformers; `slm.inference.text.load` says more."""
    from slm.inference import text

    return text.load(model_path, **options)
