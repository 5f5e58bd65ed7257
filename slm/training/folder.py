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
from slm.config.fields import fits, flags, values_of
from slm.config.formats import EXPORT_FORMATS
from slm.config.model import ModelConfig
from slm.config.train import DataConfig, TrainConfig
from slm.cores import processes
from slm.errors import UserError
from slm.files import locked, make_out_dir, sync, user_path
from slm.training import trust
from slm.training.state import State, brief, check_keys

BEST, LAST, PREVIOUS, METRICS, SAMPLES, PLOT = RUN_FILES = (
    "best_model.pt", "last.pt", "last.previous.pt", "metrics.csv", "samples.jsonl", "training.png"
)  # fmt: skip
EXPORTS = {format: Path(BEST).stem + ending for format, (_, ending) in EXPORT_FORMATS.items()}
LOCK = ".lock"
# Flags that a resumed run keeps; a changed one would be another run.
FIXED = (
    {"optimizer", "weight_decay", "beta1", "beta2", "seed"}
    | flags(ModelConfig).keys()
    | flags(DataConfig).keys() - {"cache_dir", "dataset", "val_dataset"}  # a text may move: its fingerprint is compared
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
    make_out_dir(folder)
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to --out_dir {folder}: it is read-only for this user")
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
    with reporting_changes(last):
        _check(state)
    return state, note


@contextlib.contextmanager
def reporting_changes(path: Path) -> Iterator[None]:
    """Turn a ValueError for content that no run of this program has saved into a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"{path} cannot be continued: the program has changed since it was saved, or the file itself: "
            f"{error}; start again with --overwrite"
        ) from error


def _check(saved: Checkpoint) -> None:
    """Raises ValueError where the plain values in a run's state are not such as a run saves."""
    training: Any = saved.training
    kinds = {"corpus": str, "batch_size": int, "windows": int, "launch": str, "rows": int}
    check_keys(
        "the run",
        {"stamp": "", **training} if isinstance(training, dict) else training,
        ("stamp", "state", "optimizers", "scaler", "config", *kinds),
    )
    _check_settings(training["config"])
    for name in ("context_length", "n_layer", "n_head", "n_embd", "bias"):
        if training["config"].get(name) != getattr(saved.config, name):
            raise ValueError(f"--{name} is not that of the model")
    for name, kind in kinds.items():
        if not fits(kind, training[name]) or (kind is int and not 0 < training[name] < 2**48):
            raise ValueError(f"{name} is {brief(training[name])}")
    if State.of(training["state"]).pieces >= 2 * training["batch_size"]:
        raise ValueError(f"pieces is {training['state']['pieces']}")


def _check_settings(settings: object) -> None:
    """Raises ValueError where a run's flags are not of their types; a flag may be missing, or one that is no more."""
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ValueError(f"config is {brief(settings)}")
    for name in _misfits(settings):
        raise ValueError(f"--{name} is {brief(settings[name])}")


def _misfits(settings: Mapping[str, object]) -> list[str]:
    """The flags whose values in `settings` are not of their types."""
    known = flags(TrainConfig)
    return [name for name in known if name in settings and not fits(known[name].kind, settings[name])]


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
    return [
        *(f"--{name} was {old[name]}, and is {new[name]} from here on" for name in changed),
        *(
            f"--{name} was {old[name]}, and is ignored: this program has no such flag"
            for name in old
            if name not in new
        ),
    ]


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


def stored_settings(folder: Path) -> tuple[dict[str, Any], bool]:
    """The flags that the run in `folder` was started with, and whether it was this user who named its paths.

    None where there is no run to resume. Raises UserError where a value cannot be one of its flag.
    """
    header = _header(folder) or {}
    settings = header.get("config", {})
    if not isinstance(settings, dict):
        raise UserError(f"the flags in {folder / LAST} are damaged: start again with --overwrite")
    wrong = _misfits(settings)
    if wrong:
        raise UserError(*(f"--{name} in {folder / LAST} is damaged: {brief(settings[name])}" for name in wrong))
    known = flags(TrainConfig)
    settings = {name: value for name, value in settings.items() if name in known}
    return settings, trust.is_own(settings, header.get("stamp"))


def _header(folder: Path) -> Mapping[str, Any] | None:
    """What the latest state that can be opened says of its run, without its tensors; None where there is none."""
    for name in (LAST, PREVIOUS):
        try:
            return checkpoint.training_header(folder / name)
        except UserError:  # noqa: PERF203 - reported when the run is resumed
            continue
    return None
