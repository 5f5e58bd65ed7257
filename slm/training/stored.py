"""Settings that follow from files: those of the run to resume, and the shape of the model to start from."""

from __future__ import annotations

from collections.abc import Mapping

from slm.checkpoint.open import model_config
from slm.config.fields import values_of
from slm.cores import processes
from slm.files import user_path
from slm.training import folder

LENGTHS = {"epochs", "max_steps", "max_minutes"}

Values = Mapping[str, object]


def defaults(given: Values) -> tuple[Values, dict[str, object], list[str]]:
    """What takes the place of defaults, `given` as it counts from here on, and a line for each contradiction.

    Raises UserError where the model to start from cannot be read; a run that cannot be resumed is reported later.
    """
    out_dir, given = user_path(str(given.get("out_dir", "."))), dict(given)
    if processes().restartable and folder.was_restarted(out_dir):
        given |= {"resume": True, "overwrite": False}
        given.pop("init_from", None)
    if given.get("resume") is True:  # a resumed run keeps its settings, except for those given now
        stored = folder.stored_settings(out_dir)
        if given.keys() & LENGTHS:  # a new length replaces the old one, in whichever unit
            stored = {name: value for name, value in stored.items() if name not in LENGTHS}
        if "init_from" in given:
            mend = "a resumed run continues from its own weights"
            return stored, given, [f"--resume and --init_from exclude each other: {mend}"]
        return stored, given, []
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
