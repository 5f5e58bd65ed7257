"""How fast and in how much memory does a text become token files?

Compares `slm.data.encoding.encode` with tiktoken's own `encode_ordinary_batch` on the same documents, alternating, both
on one core, then ours on all cores; then encodes a text of `--gigabytes` in a process of its own and reports its peak
memory above that of an interpreter which has the same modules loaded (Linux only). Prints a table and one JSON line.

    python benchmarks/tokenising.py --dataset path/to/train.txt
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MEASURE_PEAK = """
import re, sys
import tqdm
from slm.config.train import DataConfig
from slm.data import corpus
from slm.data.tokenizer import gpt2
tokenizer = gpt2()
tokenizer.encode("warm")
if len(sys.argv) > 1:
    corpus.prepare(DataConfig(dataset=sys.argv[1], cache_dir=sys.argv[2]), 50257)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def machine() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="stories:20000", help="text to measure with")
    parser.add_argument(
        "--gigabytes", type=float, default=1.0, help="size of the text for the memory figure; 0: leave out"
    )
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()

    from slm.data.encoding import encode
    from slm.data.sources import open_source
    from slm.data.tokenizer import gpt2

    source = open_source(flags.dataset)
    documents = [piece.text for piece in source.pieces()]
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    tokenizer = gpt2()
    all_cores = os.sched_getaffinity(0)

    def seconds(work: Callable[[], None]) -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    def theirs() -> None:
        tokenizer._encoding.encode_ordinary_batch(documents, num_threads=1)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as cache:
            encode(source, tokenizer, cache)

    times: dict[str, list[float]] = {"tiktoken, 1 core": [], "ours, 1 core": [], "ours, all cores": []}
    for _ in range(flags.rounds):
        os.sched_setaffinity(0, {min(all_cores)})
        times["tiktoken, 1 core"].append(seconds(theirs))
        times["ours, 1 core"].append(seconds(ours))
        os.sched_setaffinity(0, all_cores)
        times["ours, all cores"].append(seconds(ours))
    speeds = {name: megabytes / statistics.median(each) for name, each in times.items()}
    result: dict[str, object] = {
        "megabytes": round(megabytes, 1),
        "cores": len(all_cores),
        "machine": machine(),
        "MB/s": {name: round(speed, 1) for name, speed in speeds.items()},
        "ours / tiktoken, 1 core": round(speeds["ours, 1 core"] / speeds["tiktoken, 1 core"], 2),
    }
    if flags.gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            text, block = Path(folder) / "large.txt", "\n<|endoftext|>\n".join(documents)
            with text.open("w") as file:
                for _ in range(round(flags.gigabytes * 1e9 / (1e6 * megabytes)) or 1):
                    file.write(block + "\n<|endoftext|>\n")

            def peak(*arguments: str) -> int:
                code = [sys.executable, "-c", MEASURE_PEAK, *arguments]
                return int(subprocess.run(code, check=True, capture_output=True, text=True).stdout) * 1024

            result["text for memory, GB"] = round(text.stat().st_size / 1e9, 2)
            result["peak memory above base, MB"] = round((peak(str(text), folder) - peak()) / 1e6)
    for name, value in result.items():
        print(f"{name:28} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
