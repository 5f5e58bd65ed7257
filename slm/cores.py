"""How many CPU cores there are to use, and among how many processes of one run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


def usable_cores() -> int:
    """Cores that this process may use: what the machine has, less what it is kept from by affinity or a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # a container's share of the time, "quota period" in microseconds or "max period"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def fast_threads(texts: int) -> int:
    """Cores to use for writing `texts` texts at once: for a single one, more than 4 only wait for each other."""
    return usable_cores() if texts > 1 else min(usable_cores(), 4)


class Processes(NamedTuple):
    """Which process of a run this is, and how many there are: in all, and on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    restartable: bool = False  # when one of them ends


def processes() -> Processes:
    """What torchrun says of this process; without it, that it is alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Processes()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, world, local_rank, local_world = (int(os.environ[name]) for name in names)
    return Processes(rank, world, local_rank, local_world, restartable=True)
