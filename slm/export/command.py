"""`slm export`: a checkpoint becomes files that other programs read, each tried before it gets its name.

A format is a module beside this one with two functions, and a line in `slm/config/formats.py`:

write(loaded, path, format)   make the file or folder `path`, which does not exist yet
check(loaded, path, format)   load it with the program that it is for and compare; returns one line with the result.
                              Raises UserError on a mismatch, ModuleNotFoundError where that program is not installed
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from slm.checkpoint.file import Checkpoint
from slm.checkpoint.open import open_model
from slm.config.fields import python
from slm.config.formats import EXPORT_FORMATS, format_list
from slm.config.use import ExportConfig
from slm.errors import UserError, first_line
from slm.files import find_model, make_out_dir, publishing, user_path


def main(config: ExportConfig) -> None:
    """`slm export`: write each format asked for, and print the result of each."""
    export_formats(config)


def export_formats(config: ExportConfig) -> list[Path]:
    """Write each format asked for, and print the result of each; returns the files and folders written."""
    model_path = find_model(user_path(config.model_path)).absolute()
    loaded = open_model(model_path)
    out_dir = model_path.parent if config.out_dir is None else user_path(config.out_dir)
    make_out_dir(out_dir)
    base = out_dir / (model_path.resolve().name if model_path.is_dir() else model_path.stem)
    problems: list[str] = []
    written = []
    for format in format_list(config.format):
        try:
            print(export(loaded, format, base))
            written.append(path_of(base, format))
        except UserError as error:  # noqa: PERF203 - the other formats are still written
            problems += error.problems
    if problems:
        raise UserError(*problems)
    if config.push is not None:
        print(f"on the hub   {push(path_of(base, 'huggingface'), config.push)}")
    return written


def push(folder: Path, name: str) -> str:
    """Put the files of `folder` at `name`, owner/name, on the hub; returns the address. Raises UserError."""
    from huggingface_hub import HfApi

    try:
        address = HfApi().create_repo(name, exist_ok=True, private=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="A model of small-language-model")
    except Exception as error:  # of many kinds: of the hub, of its client, of the network
        mend = "log in with `hf auth login`, by a token that may write, and give --push a name of your own"
        raise UserError(f"{folder} is written, but the hub did not take it ({first_line(error)}): {mend}") from error
    return str(address)


def path_of(base: Path, format: str) -> Path:
    """The file or folder of `format` beside `base`, the path without its ending."""
    return base.with_name(base.name + EXPORT_FORMATS[format][1])


def export(loaded: Checkpoint, format: str, base: Path) -> str:
    """Write `loaded` as `format` beside `base`, the path without its ending; returns the line to print.

    What was written is loaded by the program that it is for, where that is installed, before it takes its name. Raises
    UserError where a package is missing, the model is not the same there, or the disk refuses; nothing is left then.
    """
    module = importlib.import_module(f"slm.export.{EXPORT_FORMATS[format][0]}")
    path = path_of(base, format)
    with publishing(path) as temporary:
        try:
            module.write(loaded, temporary, format)
        except ModuleNotFoundError as error:
            mend = f"{python()} -m pip install {error.name}"
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
