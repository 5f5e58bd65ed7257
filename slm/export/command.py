"""`slm export`: a checkpoint becomes files that other programs read, each tried before it gets its name.

A format is a module beside this one with two functions, and a line in `slm.config.EXPORT_FORMATS`:

write(loaded, path, format)   make the file or folder `path`, which does not exist yet
check(loaded, path, format)   load it with the program that it is for and compare: one line of what was found.
                              Raises UserError on a mismatch, ModuleNotFoundError where that program is not installed
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from slm.checkpoint.file import Checkpoint
from slm.checkpoint.open import open_model
from slm.config.formats import EXPORT_FORMATS, format_list
from slm.config.use import ExportConfig
from slm.errors import UserError
from slm.files import find_model, publishing, user_path


def main(config: ExportConfig) -> None:
    """`slm export`: write each format asked for, and say what came of it."""
    model_path = find_model(user_path(config.model_path)).absolute()
    loaded = open_model(model_path)
    out_dir = model_path.parent if config.out_dir is None else user_path(config.out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make --out_dir {out_dir}: {error.strerror}") from error
    base = out_dir / (model_path.resolve().name if model_path.is_dir() else model_path.stem)
    problems: list[str] = []
    for format in format_list(config.format):
        try:
            print(export(loaded, format, base))
        except UserError as error:  # noqa: PERF203 - the other formats are still written
            problems += error.problems
    if problems:
        raise UserError(*problems)


def export(loaded: Checkpoint, format: str, base: Path) -> str:
    """Write `loaded` as `format` beside `base`, the path without its ending; returns what to tell the user.

    What was written is loaded by the program that it is for, where that is installed, before it takes its name. Raises
    UserError where a package is missing, the model is not the same there, or the disk refuses; nothing is left then.
    """
    module_name, ending = EXPORT_FORMATS[format]
    module = importlib.import_module(f"slm.export.{module_name}")
    path = base.with_name(base.name + ending)
    with publishing(path) as temporary:
        try:
            module.write(loaded, temporary, format)
        except ModuleNotFoundError as error:
            mend = 'in this project, python -m pip install -e ".[export]"'
            raise UserError(
                f"{format} needs the Python package {error.name!r}, which is not installed: {mend}"
            ) from error
        except UserError as error:
            raise UserError(*(f"{format}: {problem}" for problem in error.problems)) from error
        size = sum(file.stat().st_size for file in _files(temporary))
        try:
            checked = module.check(loaded, temporary, format)
        except ModuleNotFoundError as error:
            checked = f"not tried, as {error.name} is not installed"
        except UserError as error:
            raise UserError(*(f"{format}: {problem}" for problem in error.problems)) from error
    return f"{format:12} {path} ({size / 1e6:,.1f} MB): {checked}"


def _files(path: Path) -> Iterable[Path]:
    return (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
