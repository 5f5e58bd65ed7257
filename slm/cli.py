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
import textwrap
import threading
import time
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from slm import __version__
from slm.config.fields import Flag, Settings, build, expected, flags, parse
from slm.config.train import FindRateConfig, TrainConfig
from slm.config.use import EvaluateConfig, ExportConfig, GenerateConfig, ImportConfig, ServeConfig, WatchConfig
from slm.cores import processes
from slm.errors import UserError

_NO_VALUE = object()  # stands for the missing value of a flag

# command -> (its settings, the module whose `main(config)` runs it)
COMMANDS: dict[str, tuple[type[Settings], str]] = {
    "train": (TrainConfig, "slm.training.command"),
    "find-lr": (FindRateConfig, "slm.training.find_rate"),
    "generate": (GenerateConfig, "slm.inference.command"),
    "serve": (ServeConfig, "slm.server.app"),
    "evaluate": (EvaluateConfig, "slm.evaluation.command"),
    "watch": (WatchConfig, "slm.server.watch"),
    "export": (ExportConfig, "slm.export.command"),
    "import": (ImportConfig, "slm.checkpoint.command"),
}
SERVER_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def read_flags(command: str, arguments: Sequence[str]) -> Any:
    """The config of `command` from its `arguments`; flags of the call win over every other source of values.

    Raises UserError with every bad argument at once.
    """
    config_class, module = COMMANDS[command]
    given, problems = _given(command, config_class, arguments)
    defaults = config_class.defaults(given)
    if config_class.depend_on_files(given):
        stored, given, more = importlib.import_module(module).defaults(given)
        defaults = {**stored, **defaults}
        problems += more
    config = build(config_class, {**defaults, **given})
    problems += config.problems()
    if problems:
        raise UserError(*problems)
    return config


def _given(command: str, config_class: type[Settings], arguments: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """The values of the flags in `arguments`, and a line for each argument that cannot be understood."""
    known = flags(config_class)
    texts, unknown = _parser(command, config_class, known).parse_known_args(list(arguments))
    values: dict[str, object] = {}
    problems: list[str] = []
    free = [name for name in config_class.POSITIONAL if getattr(texts, name) is None]
    previous = ""
    for argument in unknown:
        follows_unknown_flag = previous.startswith("--") and "=" not in previous
        if argument.startswith("-") or not argument or not (follows_unknown_flag or free):
            problems.append(_unknown(argument, known))
        elif not follows_unknown_flag:
            setattr(texts, free.pop(0), [argument])
        previous = argument
    for name, flag in known.items():
        given = getattr(texts, name)
        if given is None:
            continue
        several = typing.get_origin(flag.kind) is tuple
        if _NO_VALUE in (given if several else given[-1:]):
            problems.append(f"--{name} needs a value")
            continue
        try:
            parsed = tuple(parse(flag.kind, text) for text in (given if several else given[-1:]))
        except ValueError:
            problems.append(f"--{name} must be {expected(flag.kind)}, not {given[-1]!r}")
            continue
        values[name] = parsed if several else parsed[0]
    return values, problems


def _parser(command: str, config_class: type[Settings], known: Mapping[str, Flag]) -> argparse.ArgumentParser:
    positional = "".join(f" [{name}]" for name in config_class.POSITIONAL)
    parser = argparse.ArgumentParser(
        prog=f"slm {command}", usage=f"slm {command}{positional} [flags]", description=config_class.__doc__,
        allow_abbrev=False, formatter_class=_HelpFormatter,
    )  # fmt: skip
    for name, (kind, text, default) in known.items():
        shown = str(default).lower() if kind is bool else default
        help = text if "default:" in text else f"{text} (default: {shown})"
        # Values stay strings and may be missing until all flags are read: argparse would stop at the first bad one.
        parser.add_argument(
            f"--{name}", nargs="?", const="true" if kind is bool else _NO_VALUE, default=None, action="append",
            metavar=expected(kind), help=help.replace("%", "%%"),
        )  # fmt: skip
    return parser


class _HelpFormatter(argparse.HelpFormatter):
    """A flag, what its value is, and what it means, on up to 120 columns."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=min(120, shutil.get_terminal_size().columns))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar or "")  # without the brackets of an optional value


def _unknown(argument: str, known: Mapping[str, Flag]) -> str:
    """The line for an argument that is neither a flag nor the value of one."""
    if argument.startswith("--"):
        name = argument.split("=")[0]
        near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, n=1)
        return f"no flag {name}" + (f": did you mean --{near[0]}?" if near else "; --help lists all")
    if argument.startswith("-"):
        return f"unexpected argument {argument!r}: write a value that begins with - as --flag=-value"
    return f"unexpected argument {argument!r}: every value follows its flag"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `slm COMMAND [flags]` and return its exit code: 0 done, 2 for what the user can mend, 130 interrupted."""
    if sys.version_info < (3, 10):  # noqa: UP036 - a message instead of a traceback
        print("error: Python 3.10 or newer is needed; this is " + sys.version.split()[0], file=sys.stderr)
        return 2
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    _prepare_process()
    if command == "--version":
        print(f"slm {__version__}")
        return 0
    if command not in COMMANDS:
        return _list_commands(command)
    this = processes()
    try:
        config = read_flags(command, rest)
        return importlib.import_module(COMMANDS[command][1]).main(config) or 0
    except UserError as error:
        if this.local_rank > 0:  # torchrun ends this process meanwhile, if the first one reports the same
            time.sleep(5)
        origin = f"process {this.rank} of {this.world}: " if this.world > 1 else ""
        for problem in error.problems:
            print(f"error: {origin}{problem}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "slm":
            raise
        needed = "fastapi uvicorn prometheus-client" if error.name in SERVER_PACKAGES else "-r requirements.txt"
        print(
            f"error: the Python package {error.name!r} is not installed: python -m pip install {needed}",
            file=sys.stderr,
        )
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


def _prepare_process() -> None:
    """Set up output, signals and threads for the whole process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # lines appear at once in a log, and every character can be printed
            stream.reconfigure(errors="replace", line_buffering=True)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that temporary files are deleted
    if "OMP_WAIT_POLICY" not in os.environ:  # waiting threads free the cores sooner: docs/experiments.md
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if processes().rank > 0:  # of several processes only the first prints
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - until the process ends


def _list_commands(asked: str) -> int:
    """Print the commands: as an answer to `--help`, else as an error."""
    is_help = asked in ("-h", "--help", "help")
    stream = sys.stdout if is_help else sys.stderr
    print(f"usage: slm {{{','.join(COMMANDS)}}} [--help] [flags]\n", file=stream)
    for name, (config, _) in COMMANDS.items():
        print(f"  {name:10} {config.__doc__}", file=stream)
    if not is_help:
        print(f"error: no command {asked!r}", file=sys.stderr)
    return 0 if is_help else 2
