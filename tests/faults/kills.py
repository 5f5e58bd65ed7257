"""Kill one training run again and again, at any moment, and compare how it ends with an undisturbed one.

    python -m tests.faults.kills --kills 200 --seed 0

Each life of the run is a forked process. Half of them get SIGKILL after a random time, the others kill themselves
before or after a random write to the disk or change of a name. Now and then the token cache is taken away, so that
kills fall into the tokenising, too; the last fifth of the kills fall into the end of the run, where the best model is
measured and exported. After each kill every file in the run's folder must open and be whole. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from slm.run_files import read_rows, read_samples

PHASES = ("between", "tokenising", "step", "evaluation", "save", "export")
CLOCK = {"seconds", "tokens_per_second"}


def life(config, shared, kill_at_call=None):
    """In a forked process: run the command until it ends or is killed; never returns."""
    from slm.training import command, evaluator, folder
    from tests.runs import train

    def noted(phase, function):
        @functools.wraps(function)
        def wrapper(*arguments, **keywords):
            before, shared[0] = shared[0], PHASES.index(phase)
            try:
                return function(*arguments, **keywords)
            finally:
                shared[0] = before

        return wrapper

    def befall(run):
        run.batch = noted("step", run.batch)
        run.learner.step = noted("step", run.learner.step)
        run.evaluator.evaluate = noted("evaluation", run.evaluator.evaluate)
        run.keeper.keep = noted("evaluation", run.keeper.keep)  # which draws, for most of its time
        run.keeper.save_best = noted("save", run.keeper.save_best)

    command.prepare = noted("tokenising", command.prepare)
    folder.save = noted("save", folder.save)
    command.export = noted("export", command.export)
    evaluator.SAMPLE_LENGTH = 3
    calls = 0

    def deadly(function):
        @functools.wraps(function)
        def wrapper(*arguments, **keywords):
            nonlocal calls
            for moment in ("before", "after"):
                calls += 1
                if calls == kill_at_call:
                    os.kill(os.getpid(), signal.SIGKILL)
                if moment == "before":
                    result = function(*arguments, **keywords)
            return result

        return wrapper

    os.fsync, Path.replace, Path.rename = deadly(os.fsync), deadly(Path.replace), deadly(Path.rename)
    code = 1
    try:
        shared[1] = 1
        code = train(config, befall)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        shared[1] = 2
        os._exit(code)


def forked(function, *arguments):
    """The process id of a child that runs `function` and ends, quietly."""
    child = os.fork()
    if child:
        return child
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    if function is life:
        os.dup2(quiet, 2)
        sys.__stderr__ = os.fdopen(os.open(os.environ["KILLS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w")
    try:
        function(*arguments)
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)


def check_files(out_dir):
    """Whatever has its final name opens and is whole."""
    from slm.checkpoint import file as checkpoint
    from slm.inference.onnx_engine import OnnxEngine

    for name in ("last.pt", "last.previous.pt", "best_model.pt"):
        if (out_dir / name).exists():
            checkpoint.load(out_dir / name)
    if (out_dir / "metrics.csv").exists():
        assert rows(out_dir)
    if (out_dir / "samples.jsonl").exists():
        assert len(read_samples(out_dir)) == (out_dir / "samples.jsonl").read_text().count("\n") > 0
    if (out_dir / "training.png").exists():
        assert (out_dir / "training.png").read_bytes()[-8:-4] == b"IEND"
    if (out_dir / "best_model.onnx").exists():
        OnnxEngine(out_dir / "best_model.onnx", threads=1)


def rows(out_dir):
    """metrics.csv without what the clock decides; its steps rise, none is there twice."""
    table = [{name: row[name] for name in row if name not in CLOCK} for row in read_rows(out_dir)]
    steps = [row["step"] for row in table]
    assert steps == sorted(set(steps))
    assert all(row.keys() == table[0].keys() and None not in row.values() for row in table)
    return table


def ended(child):
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    flags = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    import onnx  # noqa: F401
    import torch._dynamo

    import slm.export.onnx
    import slm.inference.onnx_engine
    import slm.training.command  # noqa: F401
    from slm.checkpoint import file as checkpoint
    from slm.config.model import ModelConfig
    from slm.config.train import DataConfig, TrainConfig
    from slm.data.stories import stories
    from slm.data.tokenizer import gpt2

    gpt2()
    chance, tally, began = random.Random(flags.seed), Counter(), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        os.environ["KILLS_LOG"] = str(home / "log")
        (home / "stories.txt").write_text("<|endoftext|>".join(stories(60)))
        undisturbed = TrainConfig(
            data=DataConfig(dataset=str(home / "stories.txt"), cache_dir=str(home / "cache"), val_fraction=0.1),
            model=ModelConfig(vocab_size=300, context_length=16, n_layer=1, n_head=2, n_embd=16, dropout=0.1),
            batch_size=4, max_steps=flags.steps, eval_every=flags.steps // 20, eval_batches=2, precision="fp32",
            device="cpu", save_every=0.002, out_dir=str(home / "undisturbed"),
        )  # fmt: skip
        shared = mmap.mmap(-1, 2)
        assert ended(forked(life, undisturbed, shared)) == 0, (home / "log").read_text()
        out_dir = home / "killed"
        config = dataclasses.replace(undisturbed, out_dir=str(out_dir))
        kills = by_themselves = 0
        done = False
        while not done or kills < flags.kills:
            if kills < flags.kills and chance.random() < 0.1:
                shutil.rmtree(home / "cache", ignore_errors=True)
            resumable = (out_dir / "last.pt").exists()
            attempt = dataclasses.replace(config, resume=resumable, overwrite=not resumable)
            near_the_end = kills >= 0.8 * flags.kills
            by_itself = kills < flags.kills and chance.random() < 0.5
            shared[0] = shared[1] = 0
            # the moments of a life: up to some twenty writes until it saves, ten times as many in a second
            at_call = round(2 ** chance.uniform(0, 7)) if by_itself else None
            child = forked(life, attempt, shared, at_call)
            if kills < flags.kills and not by_itself and not (near_the_end and not done):
                awaits_export = done and chance.random() < 0.5
                while not shared[1] or (awaits_export and shared[1] < 2 and PHASES[shared[0]] != "export"):
                    time.sleep(0.001)
                time.sleep(chance.uniform(0.0, 0.05 if awaits_export else 0.5))
                os.kill(child, signal.SIGKILL)
            code = ended(child)
            if code == -signal.SIGKILL:
                kills += 1
                by_themselves += by_itself
                tally[PHASES[shared[0]]] += 1
            else:
                assert code == 0, f"exit code {code}\n{(home / 'log').read_text()}"
                done = True
            if out_dir.exists():
                assert ended(forked(check_files, out_dir)) == 0, "a file is not whole"
        one, other = (checkpoint.load(Path(c.out_dir) / "last.pt") for c in (undisturbed, config))
        same = all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())
        tables = [rows(Path(c.out_dir)) for c in (undisturbed, config)]
        assert tables[0] == tables[1], "metrics.csv is another"
        assert same, "the last weights are others"
        print(
            json.dumps(
                {
                    "kills": kills, "at a write or a change of names": by_themselves, "in": dict(tally),
                    "steps": flags.steps, "final_val_loss": tables[1][-1]["val_loss"], "equal_to_undisturbed": same,
                    "seconds": round(time.perf_counter() - began),
                }
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()
