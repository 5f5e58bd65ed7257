"""Training, measuring and exporting from Python, as in a notebook: the commands, with their flags as keywords."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.cli import COMMANDS, config_of
from slm.config.fields import expected, fits, flags
from slm.cores import processes
from slm.evaluation.command import measure_model
from slm.evaluation.measure import Measures
from slm.export.command import export_formats
from slm.files import user_path
from slm.inference.text import TextModel, load
from slm.run_files import Row, read_rows, read_samples
from slm.training import command
from slm.training.folder import BEST, PLOT
from slm.training.state import brief


def train(dataset: str | os.PathLike[str] | None = None, **flags: Any) -> FinishedRun:
    """Train a model on `dataset`, a text or what else `--dataset` takes; keywords are flags of `slm train`.

    An interrupt (in a notebook: the stop button) saves the run and returns it; with `resume=True` it goes on. Another
    signal that stops a run, as of a batch system, has its usual effect once the run is saved.

    Raises UserError where a keyword or a value cannot be used, as for a folder that has a run already.
    """
    config = _config("train", **({} if dataset is None else {"dataset": dataset}), **flags)
    with contextlib.ExitStack() as stack:
        if processes().rank > 0:  # of several processes only the first prints
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        code = command.main(config)
    if code > 128 and code != 128 + signal.SIGINT:
        signal.raise_signal(code - 128)
    return FinishedRun(user_path(config.out_dir).absolute(), stopped=code != 0)


def evaluate(model_path: str | os.PathLike[str], dataset: str | os.PathLike[str] = "stories", **flags: Any) -> Measures:
    """How well a model predicts `dataset`; keywords are flags of `slm evaluate`. Raises UserError as `train` does."""
    return measure_model(_config("evaluate", model_path=model_path, dataset=dataset, **flags))


def export(model_path: str | os.PathLike[str], format: str = "onnx", **flags: Any) -> list[Path]:
    """Write a model in the formats of other programs, one or several separated by commas; returns where.

    Keywords are flags of `slm export`. Raises UserError as `train` does, and where a format cannot be written.
    """
    return export_formats(_config("export", model_path=model_path, format=format, **flags))


@dataclass(frozen=True)
class FinishedRun:
    """What a run has left in its folder."""

    out_dir: Path
    stopped: bool = False  # before its end

    @functools.cached_property
    def model(self) -> TextModel:
        """The best model: `run.model.generate("Once upon a time")`."""
        return load(self.out_dir / BEST)

    @property
    def metrics(self) -> list[Row]:
        """The rows of metrics.csv, a dict for each evaluation: `pandas.DataFrame(run.metrics)`."""
        return read_rows(self.out_dir)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """What the model wrote at each evaluation: step, seconds, val_loss, prompt and text."""
        return read_samples(self.out_dir)

    def plot(self) -> Picture:
        """training.png, which a notebook shows."""
        return Picture(self.out_dir / PLOT)


@dataclass(frozen=True)
class Picture:
    """A PNG file that a notebook shows where it is the last value of a cell."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


def _config(name: str, **given: object) -> Any:
    """The config of a command from its flags as keywords. Raises UserError with everything that is wrong."""
    known = flags(COMMANDS[name][0])
    values: dict[str, object] = {}
    problems: list[str] = []
    for keyword, value in given.items():
        if keyword not in known:
            near = difflib.get_close_matches(keyword, known, n=1)
            problems.append(f"no keyword {keyword!r}" + (f": did you mean {near[0]}?" if near else ""))
            continue
        plain = os.fspath(value) if isinstance(value, os.PathLike) else value
        plain = value.item() if isinstance(value, np.generic) else plain
        if isinstance(plain, str) and plain == "auto" and fits(known[keyword].kind, None):
            plain = None
        if not fits(known[keyword].kind, plain):
            problems.append(f"{keyword} must be {expected(known[keyword].kind)}, not {brief(value)}")
        else:
            values[keyword] = tuple(plain) if isinstance(plain, list) else plain
    return config_of(name, values, problems)
