"""The command line: flags from the dataclasses of `slm.config`, and one place where errors become messages.

Nothing heavy is imported before the flags are read, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import io
import os
import shutil
import signal
import sys
import textwrap
import time
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from slm import __version__
from slm.config import fields
from slm.config.fields import Flag, Settings, build, expected, flags, parse
from slm.config.train import DoctorConfig, FindRateConfig, TrainConfig
from slm.config.use import EvaluateConfig, ExportConfig, GenerateConfig, ImportConfig, ServeConfig, WatchConfig
from slm.cores import processes
from slm.errors import UserError
from slm.training.interrupt import set_handler

_NO_VALUE = object()  # stands for the missing value of a flag

# command -> (its settings, the module whose `main(config)` runs it)
COMMANDS: dict[str, tuple[type[Settings], str]] = {
    "train": (TrainConfig, "slm.training.command"),
    "find-lr": (FindRateConfig, "slm.training.find_rate"),
    "generate": (GenerateConfig, "slm.inference.command"),
    "serve": (ServeConfig, "slm.server.command"),
    "evaluate": (EvaluateConfig, "slm.evaluation.command"),
    "watch": (WatchConfig, "slm.server.watch"),
    "export": (ExportConfig, "slm.export.command"),
    "import": (ImportConfig, "slm.checkpoint.command"),
    "doctor": (DoctorConfig, "slm.training.doctor"),
}
ACTIVATE = ".venv/bin/activate"
SERVER_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
WITHOUT_WORDS = ("train", "find-lr")  # go on where nothing can be printed: what they print is not what they are for


def read_flags(command: str, arguments: Sequence[str]) -> Any:
    """The config of `command` from its `arguments`; flags of the call win over every other source of values.

    Raises UserError with every bad argument at once.
    """
    return config_of(command, *_given(command, COMMANDS[command][0], arguments))


def config_of(command: str, given: dict[str, object], problems: list[str]) -> Any:
    """The config of `command` from the values of flags that are `given`.

    Raises UserError with `problems`, those found so far, and all others.
    """
    config_class, module = COMMANDS[command]
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
    spelled = [_with_underscores(argument, known) for argument in arguments]
    texts, unknown = _parser(command, config_class, known).parse_known_args(spelled)
    values: dict[str, object] = {}
    problems: list[str] = []
    stray: list[str] = []  # values without a flag
    free = [name for name in config_class.POSITIONAL if getattr(texts, name) is None]
    previous = ""
    for argument in unknown:
        follows_unknown_flag = previous.startswith("--") and "=" not in previous
        if argument.startswith("-"):
            problems.append(_unknown(argument, known.keys() - config_class.MEANINGLESS))
        elif not argument or not (follows_unknown_flag or free):
            stray.append(argument)
        elif not follows_unknown_flag:
            setattr(texts, free.pop(0), [argument])
        previous = argument
    if stray:
        more = f" and {len(stray) - 1:,} more" if len(stray) > 1 else ""
        mend = "every value follows its flag; quote a pattern, as in '*.txt'"
        problems.append(f"unexpected argument {stray[0]!r}{more}: {mend}")
    for name, flag in known.items():
        given = getattr(texts, name)
        if given is None:
            continue
        if name in config_class.MEANINGLESS:
            problems.append(f"--{name} changes nothing in {command}: leave it out")
            continue
        several = typing.get_origin(flag.kind) is tuple
        if len(given) > 1 and not several:
            problems.append(f"--{name} is given {len(given):,} times: keep one of them")
            continue
        if _NO_VALUE in given:
            problems.append(f"--{name} needs a value")
            continue
        try:
            parsed = tuple(parse(flag.kind, text) for text in given)
        except ValueError:
            problems.append(f"--{name} must be {expected(flag.kind)}, not {given[-1]!r}")
            continue
        values[name] = parsed if several else parsed[0]
    return values, problems


def _with_underscores(argument: str, known: Mapping[str, Flag]) -> str:
    """A flag that is written with hyphens, as other programs have them, in our spelling."""
    name, equals, value = argument.partition("=")
    underscored = name.replace("-", "_").removeprefix("__")
    return f"--{underscored}{equals}{value}" if name.startswith("--") and underscored in known else argument


def _parser(command: str, config_class: type[Settings], known: Mapping[str, Flag]) -> argparse.ArgumentParser:
    positional = "".join(f" [{name}]" for name in config_class.POSITIONAL)
    called = fields.command(command)
    parser = argparse.ArgumentParser(
        prog=called, usage=f"{called}{positional} [flags]", description=config_class.__doc__,
        epilog=f"example: {called} {config_class.EXAMPLE}", allow_abbrev=False, formatter_class=_HelpFormatter,
    )  # fmt: skip
    group: Any = parser
    for name, (kind, text, default) in known.items():
        if name in config_class.HEADINGS:
            group = parser.add_argument_group(config_class.HEADINGS[name])
        shown = str(default).lower() if kind is bool else default
        help = text if "default:" in text or default in (None, "") else f"{text} (default: {shown})"
        help = argparse.SUPPRESS if name in config_class.MEANINGLESS else help.replace("%", "%%")
        # Values stay strings and may be missing until all flags are read: argparse would stop at the first bad one.
        group.add_argument(
            f"--{name}", nargs="?", const="true" if kind is bool else _NO_VALUE, default=None, action="append",
            metavar=expected(kind), help=help,
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


def _unknown(argument: str, known: Collection[str]) -> str:
    """The line for an argument that begins with - and is not a flag."""
    if argument.startswith("--"):
        name = argument.split("=")[0]
        near = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, n=1)
        return f"no flag {name}" + (f": did you mean --{near[0]}?" if near else "; --help lists all")
    return f"unexpected argument {argument!r}: write a value that begins with - as --flag=-value"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `slm COMMAND [flags]` and return its exit code: 0 done, 2 for what the user can mend, 130 interrupted."""
    if sys.version_info < (3, 10):  # noqa: UP036 - a message instead of a traceback
        print("error: Python 3.10 or newer is needed; this is " + sys.version.split()[0], file=sys.stderr)
        return 2
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    _prepare_process(needs_words=command not in WITHOUT_WORDS)
    if command in ("--version", "version"):
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
        needed = "fastapi uvicorn prometheus-client" if error.name in SERVER_PACKAGES else error.name
        mend = f"{fields.python()} -m pip install {needed}"
        if sys.prefix == sys.base_prefix and Path(ACTIVATE).is_file():
            mend = f"source {ACTIVATE}, for the environment here, or {mend}"
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
        return 141
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def script(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `main` and end the process with its exit code; a signal that comes meanwhile changes nothing."""
    code = 130
    _end_at_one_signal()
    try:
        code = main(arguments)
    except KeyboardInterrupt:  # while another one was dealt with
        pass
    finally:
        set_handler(signal.SIG_IGN)
    sys.exit(code)


def _end_at_one_signal() -> None:
    """Let the first signal that nobody else takes end the process, so that temporary files are deleted.

    Those that come while it ends change nothing: where an object is being freed, an exception could only be printed.
    """
    ending: list[int] = []

    def end(number: int, _: object) -> None:
        if not ending:
            ending.append(number)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)

    set_handler(end)


class _Output(io.FileIO):
    """Standard output or error, which may be on a full disk, a terminal that is closed or a pipe that nobody reads."""

    def __init__(self, descriptor: int, needed: bool):
        """needed: raise the first failure, UserError where it is not a broken pipe. All others are ignored."""
        super().__init__(descriptor, "w", closefd=False)
        self.needed = needed

    def write(self, data: Any) -> int:
        """Write all of `data`; what is lost counts as written."""
        left = memoryview(data)
        try:
            while left:
                written: int | None = super().write(left)
                if written is None:
                    raise BlockingIOError(errno.EAGAIN, "the reader of the output does not read")
                left = left[written:]
        except OSError as error:
            if self.needed:
                self.needed = False
                if isinstance(error, BrokenPipeError):
                    raise
                raise UserError(f"cannot write to standard output: {error.strerror}") from error
        return len(data)


def _prepare_process(*, needs_words: bool) -> None:
    """Set up output and threads for the whole process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before this process began
            stream = open(os.devnull, "w")  # noqa: SIM115, PTH123 - until the process ends
        elif stream is getattr(sys, f"__{name}__") and type(getattr(stream.buffer, "raw", stream.buffer)) is io.FileIO:
            output: Any = _Output(stream.fileno(), needed=needs_words and name == "stdout")
            stream = io.TextIOWrapper(output, encoding=stream.encoding, write_through=stream.write_through)
        if isinstance(stream, io.TextIOWrapper):  # lines appear at once in a log, and every character can be printed
            stream.reconfigure(errors="replace", line_buffering=True)
        setattr(sys, name, stream)
    if "OMP_WAIT_POLICY" not in os.environ:  # waiting threads free the cores sooner: docs/experiments.md
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if processes().rank > 0 or not sys.stderr.isatty():  # a bar is for a terminal, where it can be drawn again
        os.environ["TQDM_DISABLE"] = "1"
    if processes().rank > 0:  # of several processes only the first prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - until the process ends


def _list_commands(asked: str) -> int:
    """Print the commands as an answer to `--help`; for anything else an error, with the nearest command."""
    if asked not in ("-h", "--help", "help"):
        near = difflib.get_close_matches(asked, COMMANDS, n=1)
        mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: no command {asked!r}: {mend}", file=sys.stderr)
        return 2
    print("usage: slm COMMAND [flags]; slm COMMAND --help lists its flags\n")
    for name, (config, _) in COMMANDS.items():
        print(f"  {name:10} {config.__doc__}")
    print("  version    Print the version.\n\nexample: slm train book.txt --max_minutes 10 --out_dir runs/book")
    return 0
