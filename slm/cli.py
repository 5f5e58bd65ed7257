"""The command line: flags from the dataclasses of `slm.config`, and one place where errors become messages.

Nothing heavy is imported before the flags are read, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import shutil
import signal
import sys
import threading
import time
import typing
from collections.abc import Sequence
from typing import Any

from slm import __version__
from slm.config.fields import build, expected, flags, parse
from slm.config.model import PRESETS
from slm.config.train import FindRateConfig, TrainConfig
from slm.config.use import EvaluateConfig, ExportConfig, GenerateConfig, ImportConfig, ServeConfig, WatchConfig
from slm.cores import processes
from slm.errors import UserError

_MISSING = object()  # the value of a flag that was given none

LENGTHS = {"epochs", "max_steps", "max_minutes"}

# command -> (its settings, the module whose `main(config)` runs it)
COMMANDS: dict[str, tuple[type[Any], str]] = {
    "train": (TrainConfig, "slm.training.trainer"),
    "find-lr": (FindRateConfig, "slm.training.find_rate"),
    "generate": (GenerateConfig, "slm.inference.command"),
    "serve": (ServeConfig, "slm.server.app"),
    "evaluate": (EvaluateConfig, "slm.evaluation.command"),
    "watch": (WatchConfig, "slm.server.watch"),
    "export": (ExportConfig, "slm.export.command"),
    "import": (ImportConfig, "slm.checkpoint.command"),
}


def read_flags(command: str, arguments: Sequence[str]) -> Any:
    """The config of `command` from its `arguments`; explicit flags win over `--preset`.

    Raises UserError with every bad argument at once.
    """
    config_class, _ = COMMANDS[command]
    known = flags(config_class)
    parser = argparse.ArgumentParser(
        prog=f"slm {command}", usage=f"slm {command} [flags]", description=config_class.__doc__, allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )  # fmt: skip
    for name, (kind, text, default) in known.items():
        shown = "" if "default:" in text else f" (default: {str(default).lower() if kind is bool else default})"
        # Values stay strings and may be missing until all flags are read: argparse would stop at the first bad one.
        parser.add_argument(
            f"--{name}", nargs="?", const="true" if kind is bool else _MISSING, default=None, action="append",
            metavar=expected(kind), help=f"{text}{shown}".replace("%", "%%"),
        )  # fmt: skip
    given, unknown = parser.parse_known_args(list(arguments))

    values: dict[str, object] = {}
    problems = [
        _unknown_flag(argument, known)
        for before, argument in zip(["", *unknown], unknown, strict=False)
        if argument.startswith("--") or not before.startswith("--") or "=" in before  # else an unknown flag's value
    ]
    for name, texts in vars(given).items():
        if texts is None:
            continue
        kind = known[name][0]
        several = typing.get_origin(kind) is tuple
        try:
            parsed = [parse(kind, text) for text in (texts if several else texts[-1:]) if text is not _MISSING]
        except ValueError:
            problems.append(f"--{name} must be {expected(kind)}, not {texts[-1]!r}")
            continue
        if len(parsed) < (len(texts) if several else 1):
            problems.append(f"--{name} needs a value")
        else:
            values[name] = tuple(parsed) if several else parsed[0]
    if "preset" in values and values["preset"] not in PRESETS:
        problems.append(f"--preset must be one of {', '.join(PRESETS)}, not {values['preset']!r}")
    base = PRESETS.get(str(values.get("preset")), {})
    if command == "train" and processes().restartable:
        from slm.training.folder import was_restarted

        if was_restarted(str(values.get("out_dir", "."))):
            values |= {"resume": True, "overwrite": False}
            values.pop("init_from", None)
    if values.get("resume") is True:  # a resumed run keeps its flags, but for those given now
        from slm.training.folder import stored_settings

        stored = stored_settings(str(values.get("out_dir", ".")))
        if values.keys() & LENGTHS:  # a new length takes the place of the old one, however that was given
            stored = {name: value for name, value in stored.items() if name not in LENGTHS}
        base = {**stored, **base}
        if "init_from" in values:
            problems.append("--resume and --init_from exclude each other: a resumed run goes on from its own weights")
    elif values.get("init_from") is not None:
        from slm.training.trainer import shape_of

        shape = shape_of(str(values["init_from"]))
        problems += [
            f"--{name} {values[name]}: the model of --init_from has {value}, and it stays so"
            for name, value in shape.items()
            if values.get(name, value) != value
        ]
        base = {**base, **shape}
    config = build(config_class, {**base, **values})
    problems.extend(config.problems())
    if problems:
        raise UserError(*problems)
    return config


class _HelpFormatter(argparse.HelpFormatter):
    """A flag, what its value is, and what it means, on up to 120 columns."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=min(120, shutil.get_terminal_size().columns))

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar or "")  # without the brackets of an optional value


def _unknown_flag(argument: str, known: dict[str, Any]) -> str:
    if not argument.startswith("--"):
        mend = (
            "write a value that begins with - as --flag=-value"
            if argument[:1] == "-"
            else "every value follows its flag"
        )
        return f"unexpected argument {argument!r}: {mend}"
    near = difflib.get_close_matches(argument.lstrip("-").split("=")[0].replace("-", "_"), known, n=1)
    return f"no flag {argument.split('=')[0]}" + (f": did you mean --{near[0]}?" if near else "; --help lists all")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `slm COMMAND [flags]` and return its exit code: 0 done, 2 for what the user can mend, 130 interrupted."""
    if sys.version_info < (3, 10):  # noqa: UP036 - a message instead of a traceback
        print("error: Python 3.10 or newer is needed; this is " + sys.version.split()[0], file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # lines appear at once in a log, and no character is one too many
            stream.reconfigure(errors="replace", line_buffering=True)
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if command == "--version":
        print(f"slm {__version__}")
        return 0
    if command not in COMMANDS:
        listing = "".join(f"  {name:10} {config.__doc__}\n" for name, (config, _) in COMMANDS.items())
        asked = command in ("-h", "--help", "help")
        print(
            f"usage: slm {{{','.join(COMMANDS)}}} [--help] [flags]\n\n{listing}",
            end="",
            file=None if asked else sys.stderr,
        )
        if not asked:
            print(f"error: no command {command!r}", file=sys.stderr)
        return 0 if asked else 2
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that temporary files go
    if "OMP_WAIT_POLICY" not in os.environ:  # threads that wait leave the cores to others sooner: docs/experiments.md
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    this = processes()
    if this.rank > 0:  # of several processes one speaks
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - until the process ends
    if command == "watch" and rest and not rest[0].startswith("-"):  # the one command that is of a folder and no more
        rest = ["--run_dir", *rest]
    try:
        config = read_flags(command, rest)
        return importlib.import_module(COMMANDS[command][1]).main(config) or 0
    except UserError as error:
        if this.local_rank > 0:  # torchrun ends this process meanwhile, if the first one has the same to say
            time.sleep(5)
        of = f"process {this.rank} of {this.world}: " if this.world > 1 else ""
        for problem in error.problems:
            print(f"error: {of}{problem}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "slm":
            raise
        serving = error.name in ("fastapi", "uvicorn", "prometheus_client")
        mend = f"python -m pip install {'fastapi uvicorn prometheus-client' if serving else '-r requirements.txt'}"
        print(f"error: the Python package {error.name!r} is not installed: {mend}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        from slm.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        mend = ": make --batch_size smaller (with a larger --grad_accum), or the model" if command == "train" else ""
        print(f"error: not enough memory{mend}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
