"""How many CPU cores there are to use."""

from __future__ import annotations

import os
from pathlib import Path


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
    """On how many cores to write so many texts at once: more than a few wait for each other over a single token."""
    return usable_cores() if texts > 1 else min(usable_cores(), 4)
