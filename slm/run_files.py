"""What a run leaves for people and programs to read: the rows of metrics.csv and the stories of samples.jsonl.

A run may be writing these files, and a folder may have come from someone else: what cannot be read yet, or at all, is
left out, nothing but a regular file is opened, and what is returned is bounded, whatever the files hold.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

METRICS, SAMPLES = "metrics.csv", "samples.jsonl"
LARGEST = 4_000_000  # bytes of a file that are read
MOST_ROWS = 2_000  # of a run: of more, every second is left out until they are fewer
MOST_SAMPLES = 1_000
MOST_COLUMNS, LONGEST_NAME = 40, 100
FIELDS = {"step": float, "seconds": float, "val_loss": float, "prompt": str, "text": str}  # of a sample

Row = dict[str, float | None]


def find_runs(folder: Path, depth: int = 2) -> list[Path]:
    """The folders with a metrics.csv, in order: `folder` itself and those up to `depth` levels below it.

    Links are followed where they stay within `folder`.
    """
    return list(_runs(folder, folder.resolve(), depth))


def _runs(folder: Path, within: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, 10_000) if entry.name == METRICS or entry.is_dir())
    except OSError:
        return
    if METRICS in names:
        yield folder
    for name in names if depth else ():
        if name != METRICS and inside(folder / name, within):
            yield from _runs(folder / name, within, depth - 1)


def inside(path: Path, folder: Path) -> Path | None:
    """Where `path` leads, None where that is outside `folder`, a path without links, or nowhere."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a circle of links, before Python 3.13
        return None
    return target if target.is_relative_to(folder) else None


def read_text(path: Path, within: Path | None = None) -> str:
    """The beginning of a regular file, "" of anything else, or where it leads out of the folder `within`."""
    target = inside(path, (within or path.parent).resolve())
    if target is None:
        return ""
    # A FIFO or a device would let its reader wait; no link is followed that was put there meanwhile.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(target.lstat().st_mode):
            return ""
        with os.fdopen(os.open(target, flags), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read(LARGEST).decode("utf-8", "replace").replace("\0", "")
    except OSError:
        pass
    return ""


def read_rows(run: Path, within: Path | None = None) -> list[Row]:
    """The rows of a run's metrics.csv that have a step: the finite numbers of its columns, and None for other cells."""
    table = csv.reader(io.StringIO(read_text(run / METRICS, within)))
    rows: list[Row] = []
    every, latest = 1, None
    try:
        columns = [name[:LONGEST_NAME] for name in next(table, [])[:MOST_COLUMNS]]
        for number, cells in enumerate(table):
            row = dict(zip(columns, map(_number, cells), strict=False))
            if row.get("step") is None:
                continue
            latest = row
            if number % every == 0:
                rows.append(row)
            if len(rows) > MOST_ROWS:
                rows, every = rows[::2], 2 * every
    except csv.Error:  # another program's file, or a field without an end: what came before it counts
        pass
    return rows if latest is None or rows[-1:] == [latest] else [*rows, latest]


def read_samples(run: Path, within: Path | None = None) -> list[dict[str, Any]]:
    """The first stories that a run wrote: step, seconds and val_loss, which may be None, prompt and text of each."""
    samples: list[dict[str, Any]] = []
    for line in islice(io.StringIO(read_text(run / SAMPLES, within)), 10 * MOST_SAMPLES):
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(sample, dict) and _number(sample.get("step")) is not None and isinstance(sample.get("text"), str):
            samples.append(
                {
                    name: _number(sample.get(name)) if kind is float else str(sample.get(name) or "")
                    for name, kind in FIELDS.items()
                }
            )
        if len(samples) == MOST_SAMPLES:
            break
    return samples


def _number(value: object) -> float | None:
    """`value` as a finite number, None where it is none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
