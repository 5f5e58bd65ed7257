"""A run's folder: whose it is, what lies in it, and how a run comes back from it.

`last.pt` is the latest state and `last.previous.pt` the one before; both appear whole. A lock, which the system takes
back when its process ends, however it ends, keeps a second run out.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.config.fields import flags, values_of
from slm.config.formats import EXPORT_FORMATS
from slm.config.model import ModelConfig
from slm.config.train import DataConfig, TrainConfig
from slm.cores import processes
from slm.errors import UserError
from slm.files import locked, sync, user_path

BEST, LAST, PREVIOUS, METRICS, SAMPLES, PLOT = RUN_FILES = (
    "best_model.pt", "last.pt", "last.previous.pt", "metrics.csv", "samples.jsonl", "training.png"
)  # fmt: skip
EXPORTS = {format: Path(BEST).stem + ending for format, (_, ending) in EXPORT_FORMATS.items()}
LOCK = ".lock"
# Flags that a resumed run keeps; a changed one would be another run.
FIXED = (
    {"optimizer", "weight_decay", "beta1", "beta2", "seed"}
    | flags(ModelConfig).keys()
    | flags(DataConfig).keys() - {"cache_dir"}
)
BATCH = ("batch_size", "grad_accum", "global_batch_tokens")  # may change where a step's windows stay as many
OF_THE_CALL = {"resume", "overwrite", "out_dir"}  # flags that say what to do now, and are not the run's


@contextlib.contextmanager
def opened(config: TrainConfig, alone: bool = True) -> Iterator[Path]:
    """The folder of `config`, made where it is missing, and locked until the block ends.

    alone: of several processes, only the one that writes does that.
    Raises UserError where it cannot be written to, is another run's at this moment, or holds a run that neither
    --resume nor --overwrite was given for.
    """
    folder = user_path(config.out_dir)
    if not alone:
        yield folder
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot make --out_dir {folder}: {reason}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to --out_dir {folder}: permission denied")
    there = [name for name in (*RUN_FILES, *EXPORTS.values()) if (folder / name).exists()]
    if there and not config.resume and not config.overwrite:
        raise UserError(
            f"{folder.resolve()} already holds a run ({', '.join(there)}): "
            "continue it with --resume, replace it with --overwrite, or choose another folder with --out_dir"
        )
    with locked(folder / LOCK, f"another run is at work in {folder.resolve()}", "or choose another --out_dir"):
        for left in (file for name in RUN_FILES for file in folder.glob(f".{name}.*")):
            left.unlink(missing_ok=True)  # half a file of a run that was killed
        yield folder


def begin(folder: Path) -> None:
    """Take away what an old run has left, once the new one's first state is in its place.

    Raises UserError where the disk refuses.
    """
    try:
        for path in (folder / name for name in (PREVIOUS, METRICS, SAMPLES, PLOT, *EXPORTS.values())):
            if path.is_file():
                path.unlink()
        sync(folder)
    except OSError as error:
        raise UserError(f"cannot take an old run's files out of {folder}: {error.strerror}") from error


def save(folder: Path, state: Checkpoint) -> None:
    """`state` as last.pt, and what was last.pt as last.previous.pt. Raises UserError where the disk refuses."""
    checkpoint.save(folder / LAST, state, keep=folder / PREVIOUS)


def latest(folder: Path) -> tuple[Checkpoint, str]:
    """The latest state that is whole, and a note where it is not that of last.pt.

    Raises UserError where there is none.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not (os.path.exists(last) or os.path.exists(previous)):  # noqa: PTH110 - also for names that cannot be
        raise UserError(f"nothing to resume: no {last}; leave out --resume, or name the run's --out_dir")
    note = ""
    try:
        state = checkpoint.load(last)
    except UserError as error:
        try:
            state = checkpoint.load(previous)
        except UserError:
            raise error from None
        note = f"note: {error}; going on from {PREVIOUS}"
    if state.training is None:
        raise UserError(f"{last} is a model, but not a run that can be continued")
    return state, note


def check_unchanged(training: Mapping[str, Any], config: TrainConfig, world: int = 1) -> list[str]:
    """One line for each flag that a resumed run takes over changed. Raises UserError for those that must not change.

    training: of the state to go on from. world: processes that go on with it.
    """
    old, new = training["config"], values_of(config)
    changed = [name for name in new if name in old and old[name] != new[name] and name not in OF_THE_CALL]
    before = {**values_of(TrainConfig()), **old}  # a flag newer than the run had its default
    refused = [name for name in sorted(FIXED) if before[name] != new[name]]
    if config.batch_size and step_sequences(config, config.batch_size, world) != training.get("windows"):
        refused = sorted([*refused, *(name for name in BATCH if name in changed)])
    if refused:
        raise UserError(
            *(f"--{name} was {before[name]} and cannot become {new[name]} in a resumed run" for name in refused),
            "leave these flags out to continue, or start again with --overwrite",
        )
    return [f"--{name} was {old[name]}, and is {new[name]} from here on" for name in changed]


def step_sequences(config: TrainConfig, batch_size: int, world: int) -> int:
    """How many sequences an optimizer step has, by the flags, with `batch_size` in a micro-batch of one process."""
    if config.global_batch_tokens is not None:
        return config.global_batch_tokens // config.model.context_length
    return batch_size * config.grad_accum * world


def kept_settings(config: TrainConfig) -> dict[str, Any]:
    """The flags of a run, as its files keep them."""
    return {name: value for name, value in values_of(config).items() if name not in OF_THE_CALL}


def launch() -> str:
    """Names the call of torchrun that a run's state was saved under; empty without torchrun."""
    if not processes().restartable:
        return ""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} {socket.gethostname()} {os.getppid()}"


def was_restarted(folder: Path) -> bool:
    """Whether torchrun has restarted the run in `folder`: then it was this same torchrun that left its state."""
    header = _header(folder)
    return header is not None and header.get("launch") == launch()


def stored_settings(folder: Path) -> dict[str, Any]:
    """The flags that the run in `folder` was started with; none where there is no run to resume."""
    return dict((_header(folder) or {}).get("config", {}))


def _header(folder: Path) -> Mapping[str, Any] | None:
    """What the latest state that can be opened says of its run, without its tensors; None where there is none."""
    for name in (LAST, PREVIOUS):
        try:
            return checkpoint.training_header(folder / name)
        except UserError:  # noqa: PERF203 - reported when the run is resumed
            continue
    return None
