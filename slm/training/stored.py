"""Settings that follow from files: those of the run to resume, and the shape of the model to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from slm.checkpoint.open import model_config
from slm.config.fields import flags, values_of
from slm.config.train import TrainConfig
from slm.cores import processes
from slm.files import user_path
from slm.training import folder, trust

LENGTHS = {"epochs", "max_steps", "max_minutes"}

Values = Mapping[str, object]


def _foreign(stored: Values, given: Values, out_dir: Path) -> list[str]:
    """A line for each path that a run names which another user started, or this one on another machine."""
    ours = {name: flag.default for name, flag in flags(TrainConfig).items()}
    return [
        f"--{name}: the run in {out_dir} was not started by you on this machine, and names {stored[name]!r}: "
        "give this flag yourself, with the path that is meant"
        for name in trust.PATHS
        if stored.get(name) not in (None, ours[name]) and name not in given
    ]


def defaults(given: Values) -> tuple[Values, dict[str, object], list[str]]:
    """What takes the place of defaults, `given` as it counts from here on, and a line for each contradiction.

    Raises UserError where the model to start from cannot be read; a run that cannot be resumed is reported later.
    """
    out_dir, given = user_path(str(given.get("out_dir", "."))), dict(given)
    if processes().restartable and folder.was_restarted(out_dir):
        given |= {"resume": True, "overwrite": False}
        given.pop("init_from", None)
    if given.get("resume") is True:  # a resumed run keeps its settings, except for those given now
        stored, own = folder.stored_settings(out_dir)
        problems = [] if own else _foreign(stored, given, out_dir)
        if given.keys() & LENGTHS:  # a new length replaces the old one, in whichever unit
            stored = {name: value for name, value in stored.items() if name not in LENGTHS}
        if "init_from" in given:
            mend = "a resumed run continues from its own weights"
            problems.append(f"--resume and --init_from exclude each other: {mend}")
        return stored, given, problems
    if given.get("init_from") is None:
        return {}, given, []
    shape = values_of(model_config(user_path(str(given["init_from"]))))
    shape = {name: value for name, value in shape.items() if name not in ("dropout", "attention")}
    problems = [
        f"--{name} {given[name]}: the model of --init_from has {value}, which cannot be changed"
        for name, value in shape.items()
        if given.get(name, value) != value
    ]
    return shape, given, problems
