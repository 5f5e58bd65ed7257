"""Which recipe learns a text best? Trains each with several seeds, side by side, and prints a table with its noise.

A recipe is a string of flags of train.py; the first one is what the others are compared with. What was measured stays
in `out_dir/results.jsonl`, so that a second call goes on, with more recipes or seeds if they are given. A recipe that
is worse with its first seed than the best by more than `--margin` gets no more of them.

    python benchmarks/recipe.py --dataset train.txt --val_dataset val.txt --out_dir trials --seeds 3 \\
        "--epochs 10 --batch_size 32" "--epochs 10 --batch_size 32 --dropout 0.3"
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm.cores import usable_cores
from slm.run_files import read_rows

Result = dict[str, Any]

MEASURE = """
import json, sys
from slm.checkpoint.file import load
from slm.config.use import EvaluateConfig
from slm.evaluation.command import tokens_of
from slm.evaluation.measure import evaluate
import torch

loaded = load(__import__("pathlib").Path(sys.argv[1]))
tokens = tokens_of(EvaluateConfig(dataset=sys.argv[2]), loaded.tokenizer)
measured = evaluate(loaded.model(), tokens, loaded.tokenizer, batch_size=32, dtype=torch.float32)
print(json.dumps({"bits_per_byte": measured.bits_per_byte, "loss": measured.loss, "step": loaded.facts["step"]}))
"""


def trial(recipe: str, seed: int, args: argparse.Namespace) -> Result:
    """Train once, and measure the best model on the whole validation text, in fp32."""
    folder = Path(args.out_dir) / f"trial-{abs(hash((recipe, seed))):x}"
    threads = str(max(1, usable_cores() // args.jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    texts = ["--dataset", args.dataset, "--val_dataset", args.val_dataset]
    flags = ["--seed", str(seed), "--out_dir", str(folder), "--export", "none", "--overwrite"]
    train = [sys.executable, str(ROOT / "train.py"), *shlex.split(recipe), *texts, *flags]
    start = time.perf_counter()
    run = subprocess.run(train, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if run.returncode:
        return {"recipe": recipe, "seed": seed, "error": run.stderr.strip()[-500:]}
    measure = [sys.executable, "-c", MEASURE, str(folder / "best_model.pt"), args.val_dataset]
    said = subprocess.run(measure, env=environment, capture_output=True, text=True, check=True).stdout
    last = read_rows(folder)[-1]["step"] or 0
    shutil.rmtree(folder)
    found = json.loads(said.splitlines()[-1])
    return {"recipe": recipe, "seed": seed, **found, "steps": int(last), "seconds": round(seconds, 1)}


def table(recipes: Sequence[str], results: Sequence[Result]) -> str:
    """Markdown: bits per byte, means over seeds with their standard deviation, and the difference from the first."""
    lines = ["| recipe | seeds | bits per byte | of the first | best step | minutes |", "|---|---|---|---|---|---|"]
    of = {recipe: [each for each in results if each["recipe"] == recipe and "error" not in each] for recipe in recipes}
    first = statistics.mean(each["bits_per_byte"] for each in of[recipes[0]]) if of[recipes[0]] else None
    for recipe in recipes:
        if not of[recipe]:
            continue
        bits = [each["bits_per_byte"] for each in of[recipe]]
        noise = f" ± {statistics.stdev(bits):.4f}" if len(bits) > 1 else ""
        ratio = f"{statistics.mean(bits) / first - 1:+.2%}" if first else ""
        steps = ", ".join(f"{each['step']}/{each['steps']}" for each in of[recipe])
        minutes = statistics.median(each["seconds"] for each in of[recipe]) / 60
        lines.append(
            f"| `{recipe}` | {len(bits)} | {statistics.mean(bits):.4f}{noise} | {ratio} | {steps} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", help="flags of train.py, each recipe in quotes")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--val_dataset", required=True)
    parser.add_argument("--out_dir", default="trials")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trials side by side, the cores divided among them")
    parser.add_argument("--margin", type=float, default=0.02, help="share by which a loser is worse than the best")
    args = parser.parse_args()
    Path(args.out_dir).mkdir(parents=True, exist_ok=True)
    record = Path(args.out_dir) / "results.jsonl"
    results = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    for seed in range(args.seeds):
        done = {(each["recipe"], each["seed"]) for each in results}
        scores = [each["bits_per_byte"] for each in results if each["seed"] == 0 and "error" not in each]
        limit = min(scores) * (1 + args.margin) if scores else float("inf")
        losers = {each["recipe"] for each in results if each["seed"] == 0 and each.get("bits_per_byte", 9e9) > limit}
        missing = [recipe for recipe in args.recipes if (recipe, seed) not in done]
        missing = [recipe for recipe in missing if not seed or recipe == args.recipes[0] or recipe not in losers]
        with ThreadPoolExecutor(args.jobs) as pool:
            for result in pool.map(lambda recipe, seed=seed: trial(recipe, seed, args), missing):
                print(json.dumps(result), flush=True)
                results.append(result)
                with record.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    print(f"\n{table(args.recipes, results)}\n")
    machine = {"machine": platform.processor() or platform.machine(), "cores": usable_cores(), "jobs": args.jobs}
    print(json.dumps({"benchmark": "recipe", **machine, "dataset": args.dataset, "results": results}))


if __name__ == "__main__":
    main()
