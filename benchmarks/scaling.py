"""What does a second process add to training, and what does a process hold in memory?

Steps of the same windows by one process with one thread, by one with two, and by two with one each, as DistributedData-
Parallel and as FSDP2; each case in processes of its own, `--repeats` times in turn, medians. Efficiency is the share of
twice the speed of one thread. A step's bytes are what docs/scaling.md counts. Prints a table and one JSON line (Linux).

    python benchmarks/scaling.py --train path/to/train.txt
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

CASES = {  # name -> processes, threads of each, how they share
    "1 process, 1 thread": (1, 1, "ddp"),
    "1 process, 2 threads": (1, 2, "ddp"),
    "2 processes, ddp": (2, 1, "ddp"),
    "2 processes, fsdp": (2, 1, "fsdp"),
}


def steps(flags: argparse.Namespace) -> None:
    """In one of the processes: time steps, and let the first one print what came out."""
    import torch

    from slm.config.fields import build
    from slm.config.model import PRESETS
    from slm.config.train import DataConfig, TrainConfig
    from slm.data.corpus import prepare
    from slm.learner.workers import joined
    from slm.training.run import assemble

    values = {**PRESETS[flags.preset], "batch_size": 1, "optimizer": flags.optimizer, "parallel": flags.parallel}
    config = build(TrainConfig, values)
    tokens = flags.windows * config.model.context_length
    config = dataclasses.replace(config, global_batch_tokens=tokens, batch_size=flags.windows, max_steps=1000)
    with joined(torch.device("cpu"), flags.parallel) as workers:
        torch.set_num_threads(flags.threads)
        corpus = prepare(DataConfig(dataset=flags.train, cache_dir=flags.cache_dir), config.model.vocab_size)
        run = assemble(config, corpus, workers.device, getattr(torch, flags.dtype), workers=workers)
        times = []
        for _ in range(flags.rounds + 2):
            begun = time.perf_counter()
            batches = [run.batch(number) for number in run.plan.batches_of(run.state.step)]
            run.learner.step(batches, rate=run.plan.rate(run.state), seed=run.plan.seed_of(run.state.step))
            run.state.step += 1
            times.append(time.perf_counter() - begun)
        peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
        (largest,) = workers.max(peak)
        weights = sum(parameter.numel() for parameter in run.learner.model.parameters())
        if workers.rank == 0:
            print(json.dumps({"times": times[2:], "peak_bytes": largest, "weights": weights, "tokens": tokens}))


def machine() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.machine()


def measured(name: str, flags: argparse.Namespace) -> dict[str, Any]:
    processes, threads, parallel = CASES[name]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", __file__]
    command += [f"--{key}={getattr(flags, key)}" for key in ("train", "cache_dir", "preset", "optimizer", "dtype")]
    command += [
        f"--windows={flags.windows}",
        f"--rounds={flags.rounds}",
        f"--threads={threads}",
        f"--parallel={parallel}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    said = subprocess.run([*command, "--worker"], stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return dict(json.loads(said.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", default="stories", help="the text to train on, as --dataset of train.py")
    parser.add_argument("--cache_dir", default="~/.cache/slm")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--windows", type=int, default=16, help="of a step, of all processes together")
    parser.add_argument("--rounds", type=int, default=10, help="steps that are timed in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--parallel", default="ddp", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        steps(flags)
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    for _ in range(flags.repeats):
        for name in CASES:
            found[name].append(measured(name, flags))
    speeds = {
        name: results[0]["tokens"] / statistics.median(seconds for result in results for seconds in result["times"])
        for name, results in found.items()
    }
    peaks = {name: statistics.median(result["peak_bytes"] for result in results) for name, results in found.items()}
    twice = 2 * speeds["1 process, 1 thread"]
    print(f"{machine()}; {flags.preset}, {flags.optimizer}, {flags.dtype}, {flags.windows} windows a step")
    print(f"{'':24} {'tokens/s':>9} {'of twice one thread':>20} {'memory of a process':>20}")
    for name in CASES:
        print(f"{name:24} {speeds[name]:>9,.0f} {speeds[name] / twice:>20.0%} {peaks[name] / 1e9:>17.2f} GB")
    print(json.dumps({
        "machine": machine(), "preset": flags.preset, "optimizer": flags.optimizer, "dtype": flags.dtype,
        "windows": flags.windows, "tokens_per_second": {name: round(speed, 1) for name, speed in speeds.items()},
        "efficiency": {name: round(speed / twice, 3) for name, speed in speeds.items()}, "peak_bytes": peaks,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
