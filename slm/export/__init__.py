"""Models in the formats of other programs. The package can be called: `slm.export("runs/book", "gguf")`."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any


class _Callable(types.ModuleType):
    """A package of modules, and a function beside slm.train and slm.evaluate: both are called slm.export."""

    def __call__(
        self, model_path: str | os.PathLike[str] = "best_model.pt", format: str = "onnx", **flags: Any
    ) -> list[Path]:
        """Write a model as `slm export` does, and return the files and folders; keywords are its flags."""
        from slm import api

        return api.export(model_path, format, **flags)


sys.modules[__name__].__class__ = _Callable
