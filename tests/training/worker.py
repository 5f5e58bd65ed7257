"""What torchrun starts in the tests: several runs one after another, each with something that befalls it.

worker.py JOBS: a JSON list of {"flags": [...], and any of
  "stop": step after which every process gets SIGTERM,
  "stop_first": the same for the first process alone,
  "kill": [restarts, rank, step]: that process gets SIGKILL after the step, if it was started again so often,
  "fail": [rank, step]: that process raises UserError after the step,
  "nan": [rank, first step, last step]: the loss of that process is no number, until the run goes back,
  "wait": step after which the first process makes a file "waiting" and waits until it is taken away,
  "full": [first step, last step]: best_model.pt and last.pt cannot be written,
  "log": file for what every step computed: {"losses": [...], "starts": [[...], ...]}}
A single job goes through the command line, several share the processes.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from slm.checkpoint import file as checkpoint
from slm.cli import main, read_flags
from slm.cores import processes
from slm.errors import UserError
from slm.learner.workers import Workers, joined
from slm.training import trainer
from slm.training.trainer import Run

GRADIENTS, STEP, SAVE, SAMPLE = Run._gradients, Run.step, checkpoint.save, Run._sample


def befall(job):
    """From now on runs are those of `job`. Returns what they note."""
    this, log, reached = processes(), {"losses": [], "starts": []}, [0]

    def gradients(run, step):
        rank, first, last = job.get("nan", (None, 1, 0))
        if this.rank == rank and first <= step <= last and not run.state.rollbacks:
            run.workers.mean = lambda own: Workers.mean(run.workers, own * math.nan)
        loss = GRADIENTS(run, step)
        vars(run.workers).pop("mean", None)
        numbers = range(step * run.grad_accum, (step + 1) * run.grad_accum)
        log["losses"].append(float(loss))
        log["starts"].append([run.batches.starts(number).tolist() for number in numbers])
        return loss

    def step(run, *arguments):
        note = STEP(run, *arguments)
        done = reached[0] = run.state.step
        if done == job.get("stop") or (done == job.get("stop_first") and this.rank == 0):
            os.kill(os.getpid(), signal.SIGTERM)
        if done == job.get("wait") and this.rank == 0:
            waiting = run.out_dir / "waiting"
            waiting.touch()
            while waiting.exists():
                time.sleep(0.1)
        if [int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)), this.rank, done] in job.get("kill", []):
            os.kill(os.getpid(), signal.SIGKILL)
        if [this.rank, done] == job.get("fail"):
            raise UserError("this one has had enough: give it less")
        return note

    def save(path, *arguments, **keywords):
        first, last = job.get("full", (1, 0))
        if first <= reached[0] <= last:
            raise UserError(f"cannot write {path}: No space left on device")
        SAVE(path, *arguments, **keywords)

    Run._gradients, Run.step, checkpoint.save = gradients, step, save
    trainer.SAMPLE_LENGTH, trainer.report.draw = 1, lambda *_: None
    return log


def write_log(path, log):
    """`log` with the windows of all processes, in the order in which they were dealt out."""
    own = np.array(log["starts"])  # (steps, batches, windows of this process)
    everyone = [own]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
    log["starts"] = np.stack(everyone, -1).reshape(len(own), -1).tolist()
    if not dist.is_initialized() or dist.get_rank() == 0:
        Path(path).write_text(json.dumps(log))


def run_job(job, workers):
    log = befall(job)
    code = trainer.train(read_flags("train", job["flags"]), workers)
    if "log" in job:
        write_log(job["log"], log)
    return code


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    if len(jobs) == 1 and "log" not in jobs[0]:
        befall(jobs[0])
        sys.exit(main(["train", *jobs[0]["flags"]]))
    sys.stdout = sys.stdout if processes().rank == 0 else Path(os.devnull).open("w")  # noqa: SIM115
    with joined(torch.device("cpu"), "ddp") as workers:
        for job in jobs:
            config = read_flags("train", job["flags"])
            mine = Workers(*(getattr(workers, name) for name in ("rank", "world", "local_rank", "local_world")),
                           parallel=config.parallel)  # fmt: skip
            run_job(job, mine)
