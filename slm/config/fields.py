"""One dataclass field is one flag: its help, its default and its checkpoint entry.

`flag(default, "help")` declares a field; `slm.cli` turns the fields of a command's dataclass into flags of the same
name. Nested dataclasses are flattened, so that `ModelConfig.n_layer` is simply `--n_layer`.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def flag(default: T, help: str) -> T:
    """A dataclass field with the help text that the command line shows."""
    return field(default=default, metadata={"help": help})


def command(name: str) -> str:
    """How the user calls the command `name`: as they called this one, by its script, as a module or installed."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"python -m slm {name}"
    return f"python {name}.py" if called.suffix == ".py" else f"slm {name}"


def flags(config_class: type) -> dict[str, tuple[Any, str, object]]:
    """The flags of a config class, nested ones flattened: name -> (type, help, default); `from_` is --from."""
    found: dict[str, tuple[Any, str, object]] = {}
    hints = typing.get_type_hints(config_class)
    for entry in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[entry.name]):
            found |= flags(hints[entry.name])
        else:
            found[entry.name.removesuffix("_")] = (hints[entry.name], entry.metadata["help"], entry.default)
    return found


def settings(config: object) -> dict[str, Any]:
    """The values of a config, nested ones flattened: name -> value."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, entry.name)
        found |= settings(value) if dataclasses.is_dataclass(value) else {entry.name.removesuffix("_"): value}
    return found


def build(config_class: type[T], values: Mapping[str, object]) -> T:
    """An instance from flat `values`; what is missing keeps its default."""
    hints = typing.get_type_hints(config_class)
    arguments: dict[str, object] = {}
    for entry in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[entry.name]):
            arguments[entry.name] = build(hints[entry.name], values)
        elif entry.name.removesuffix("_") in values:
            arguments[entry.name] = values[entry.name.removesuffix("_")]
    return config_class(**arguments)


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
