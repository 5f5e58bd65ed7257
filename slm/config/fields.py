"""One dataclass field is one flag: its help, its default, its bounds and its checkpoint entry.

`flag(default, "help", at_least=1)` declares a field; `slm.cli` turns the fields of a command's settings into flags of
the same name. Nested dataclasses are flattened, so that `ModelConfig.n_layer` is simply `--n_layer`.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from slm.errors import UserError

T = TypeVar("T")
SCRIPTS = ("train", "generate", "evaluate", "export", "serve")  # the commands that have one


def flag(
    default: T,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> T:
    """A dataclass field with the help text that the command line shows, and the bounds of its value."""
    return field(default=default, metadata={"help": help, "bounds": Bounds(at_least, above, at_most, below)})


class Bounds(NamedTuple):
    """What a number must be: from `at_least`, or above `above`, to `at_most`, or below `below`; None: no bound."""

    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None

    def admit(self, value: float) -> bool:
        """Whether `value` is within the bounds; no bound admits NaN, and none but `at_most` an infinity."""
        if self == (None, None, None, None):
            return True
        low = value >= self.at_least if self.at_least is not None else self.above is None or value > self.above
        high = value <= self.at_most if self.at_most is not None else value < (self.below or math.inf)
        return low and high

    def __str__(self) -> str:
        low, high = (self.at_least if self.at_least is not None else self.above), (self.at_most or self.below)
        if high is None:
            if self.above is not None:
                return f"above {low:,}"
            return "0 or more" if low == 0 else f"at least {low:,}"
        if self.above is not None:
            return f"between {low:,} and {high:,}" if self.below else f"above {low:,} and at most {high:,}"
        return f"from {low:,} to {'under ' if self.below else ''}{high:,}"


@dataclass(frozen=True)
class Settings:
    """The settings of a command, or a part of them that several share."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()  # flags whose values may also be given without their names, in order
    HEADINGS: ClassVar[Mapping[str, str]] = {}  # first flag of a group in --help -> its heading
    EXAMPLE: ClassVar[str] = ""  # what follows the command's name
    MEANINGLESS: ClassVar[frozenset[str]] = frozenset()  # inherited flags that change nothing here, and are refused

    @classmethod
    def defaults(cls, given: Mapping[str, object]) -> Mapping[str, object]:
        """Values that take the place of the fields' defaults, as `given`, the flags of the call, ask for."""
        return {}

    @classmethod
    def depend_on_files(cls, given: Mapping[str, object]) -> bool:
        """Whether more follows from files: then the command's module has a function `defaults(given)`, too."""
        return False

    def problems(self) -> Iterator[str]:
        """One line for each value that cannot be used, with the mend."""
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Settings):
                yield from value.problems()
            elif isinstance(value, int | float) and not entry.metadata["bounds"].admit(value):
                yield f"--{flag_name(entry)} must be {entry.metadata['bounds']}, not {value}"


S = TypeVar("S", bound=Settings)


class Flag(NamedTuple):
    """One flag of the command line."""

    kind: Any  # its type
    help: str
    default: object


def flag_name(entry: dataclasses.Field[Any]) -> str:
    """The name of a field's flag; `from_` is --from."""
    return entry.name.removesuffix("_")


def flags(config_class: type) -> dict[str, Flag]:
    """The flags of a config class by name, nested ones flattened."""
    found: dict[str, Flag] = {}
    hints = typing.get_type_hints(config_class)
    for entry in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[entry.name]):
            found |= flags(hints[entry.name])
        else:
            found[flag_name(entry)] = Flag(hints[entry.name], entry.metadata["help"], entry.default)
    return found


def values_of(config: object) -> dict[str, Any]:
    """The values of a config by flag, nested ones flattened."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, entry.name)
        found |= values_of(value) if dataclasses.is_dataclass(value) else {flag_name(entry): value}
    return found


def build(config_class: type[T], values: Mapping[str, object]) -> T:
    """An instance from flat `values`; what is missing keeps its default."""
    hints = typing.get_type_hints(config_class)
    arguments: dict[str, object] = {}
    for entry in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[entry.name]):
            arguments[entry.name] = build(hints[entry.name], values)
        elif flag_name(entry) in values:
            arguments[entry.name] = values[flag_name(entry)]
    return config_class(**arguments)


def checked(config_class: type[S], values: Mapping[str, object]) -> S:
    """An instance from `values`. Raises UserError where one is of a wrong type or out of bounds."""
    kinds = flags(config_class)
    wrong = [
        f"{name} must be {expected(kinds[name].kind)}, not {value!r}"
        for name, value in values.items()
        if not fits(kinds[name].kind, value)
    ]
    if wrong:
        raise UserError(*wrong)
    config = build(config_class, values)
    problems = list(config.problems())
    if problems:
        raise UserError(*problems)
    return config


def parse(kind: Any, text: str) -> object:
    """`text` as a value of the type `kind`: int, float, bool, str, Literal[...], one of these with None or in a tuple.

    Raises ValueError where it is none; `expected` says what would be.
    """
    kind, may_be_none = _without_none(kind)
    if may_be_none and text.lower() in ("none", "auto"):
        return None
    if typing.get_origin(kind) is tuple:
        return parse(typing.get_args(kind)[0], text)
    if kind is bool:
        return ("false", "true").index(text.lower()) == 1
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)[typing.get_args(kind).index(text)]
    return kind(text)


def fits(kind: Any, value: object) -> bool:
    """Whether `value` is of the type `kind`, one of those that `parse` knows; an int is a float, too."""
    kind, may_be_none = _without_none(kind)
    if value is None:
        return may_be_none
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and all(fits(typing.get_args(kind)[0], each) for each in value)
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    return type(value) is kind or (kind is float and type(value) is int)


def expected(kind: Any) -> str:
    """What a value of the type `kind` looks like, in short."""
    kind, _ = _without_none(kind)
    if typing.get_origin(kind) is tuple:
        return expected(typing.get_args(kind)[0])
    if typing.get_origin(kind) is Literal:
        return "|".join(typing.get_args(kind))
    return {int: "INTEGER", float: "NUMBER", bool: "true|false", str: "TEXT"}[kind]


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
        return kind, True
    return kind, False


def command(name: str) -> str:
    """How the user runs the command `name`, to be pasted: as this one, by its script, as a module or installed."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" or (called.suffix == ".py" and not {name, called.stem} <= set(SCRIPTS)):
        return f"{python()} -m slm {name}"
    if called.suffix == ".py":
        return f"{python()} {name}.py"
    return f"{_on_path('slm', called) if called.stem == 'slm' else 'slm'} {name}"


def python() -> str:
    """How the user starts this Python: `python`, or its path where that is another, as outside of an environment."""
    if sys.prefix == sys.base_prefix:  # not in an environment
        return "python" if shutil.which("python") or not shutil.which("python3") else "python3"
    return _on_path("python", Path(sys.executable))


def _on_path(name: str, program: Path) -> str:
    """`name` where that starts `program`, else the path of it, from the current folder if it is below."""
    found = shutil.which(name)
    if not program.is_absolute() or (found and Path(found).parent == program.parent):
        return name
    return shlex.quote(str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program))
