"""How much faster do two processes tokenise a text together than one, each on a core of its own?

The text is cut into 8 files, which are worked on in parts of `--part_bytes`. Processes start at the same moment, with
everything imported; the seconds are those until the last one has the corpus. Prints a table and one JSON line.

    python benchmarks/sharing.py --dataset path/to/train.txt
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PREPARE = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[4])})
from slm.config.train import DataConfig
from slm.data import corpus, encoding
from slm.data.tokenizer import gpt2
gpt2().encode("warm")
encoding.PART_BYTES = int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
begun, busy = time.perf_counter(), time.process_time()
corpus.prepare(DataConfig(sys.argv[1], cache_dir=sys.argv[2]), 50_257)
print(time.perf_counter() - begun, time.process_time() - busy)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="a text file")
    parser.add_argument("--part_bytes", type=int, default=1 << 20)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    text, marker = Path(flags.dataset).read_bytes(), b"<|endoftext|>"
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        files.mkdir()
        borders = [0, *(text.find(marker, len(text) * n // 8) + len(marker) for n in range(1, 8)), len(text)]
        for number in range(8):
            (files / f"{number}.txt").write_bytes(text[borders[number] : borders[number + 1]])
        for attempt in range(flags.rounds):
            for count, results in found.items():
                started = [
                    subprocess.Popen(
                        [
                            sys.executable, "-c", PREPARE, files, f"{folder}/{count}-{attempt}",
                            str(flags.part_bytes), str(core),
                        ],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
                    )
                    for core in cores[:count]
                ]  # fmt: skip
                for process in started:
                    assert process.stdout
                    process.stdout.readline()
                for process in started:
                    assert process.stdin
                    process.stdin.write("\n")
                    process.stdin.flush()
                each = [process.communicate()[0].split() for process in started]
                results.append((max(float(wall) for wall, _ in each), max(float(busy) for _, busy in each)))
    megabytes = len(text) / 1e6
    rows = {
        f"{count} process{'es' * (count > 1)}": {
            "MB/s": round(megabytes / statistics.median(wall for wall, _ in results), 1),
            "busy seconds of each": round(statistics.median(busy for _, busy in results), 2),
        }
        for count, results in found.items()
    }
    for name, row in rows.items():
        print(f"{name:12} {row['MB/s']:6.1f} MB/s   at most {row['busy seconds of each']:.2f} s busy each")
    print(json.dumps({"megabytes": round(megabytes, 1), **rows}))


if __name__ == "__main__":
    main()
