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
from slm.training import command, evaluator, report
from tests.runs import train


def befalling(job, log):
    """A function that changes a run so that what `job` says befalls it; `log` gets what every step computed."""
    this = processes()

    def befall(run):
        feed, saw = run.batch, run.guard.saw

        def batch(number):
            rank, first, last = job.get("nan", (None, 1, 0))
            vars(run.workers).pop("mean", None)
            if this.rank == rank and first <= run.state.step <= last and not run.state.rollbacks:
                run.workers.mean = lambda own: Workers.mean(run.workers, own * math.nan)
            return feed(number)

        def after_step(outcome):
            saw(outcome)
            done = run.state.step
            log["losses"].append(float(outcome.loss))
            log["starts"].append([feed.batches.starts(number).tolist() for number in run.plan.batches_of(done - 1)])
            if done == job.get("stop") or (done == job.get("stop_first") and this.rank == 0):
                os.kill(os.getpid(), signal.SIGTERM)
            if done == job.get("wait") and this.rank == 0:
                waiting = run.keeper.out_dir / "waiting"
                waiting.touch()
                while waiting.exists():
                    time.sleep(0.1)
            if [int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)), this.rank, done] in job.get("kill", []):
                os.kill(os.getpid(), signal.SIGKILL)
            if [this.rank, done] == job.get("fail"):
                raise UserError("this one has had enough: give it less")

        run.batch, run.guard.saw = batch, after_step
        reached[0] = run.state

    reached = [None]
    save = checkpoint.save

    def refusing(path, *arguments, **keywords):
        first, last = job.get("full", (1, 0))
        if reached[0] is not None and first <= reached[0].step <= last:
            raise UserError(f"cannot write {path}: No space left on device")
        save(path, *arguments, **keywords)

    if "full" in job:
        checkpoint.save = refusing
    evaluator.SAMPLE_LENGTH, report.draw = 1, lambda *_: None
    return befall


def write_log(path, log):
    """`log` with the sequences of all processes, in the order in which they were dealt out."""
    own = np.array(log["starts"])  # (steps, batches, sequences of this process)
    everyone = [own]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
    log["starts"] = np.stack(everyone, -1).reshape(len(own), -1).tolist()
    if not dist.is_initialized() or dist.get_rank() == 0:
        Path(path).write_text(json.dumps(log))


def run_job(job, workers):
    log = {"losses": [], "starts": []}
    code = train(read_flags("train", job["flags"]), befalling(job, log), workers=workers)
    if "log" in job:
        write_log(job["log"], log)
    return code


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    if len(jobs) == 1 and "log" not in jobs[0]:
        befall = befalling(jobs[0], {"losses": [], "starts": []})

        def run_alone(config):
            with joined(torch.device("cpu"), config.parallel) as workers:
                return train(workers.broadcast(lambda: config), befall, workers=workers)

        command.main = run_alone
        sys.exit(main(["train", *jobs[0]["flags"]]))
    sys.stdout = sys.stdout if processes().rank == 0 else Path(os.devnull).open("w")  # noqa: SIM115
    with joined(torch.device("cpu"), "ddp") as workers:
        for job in jobs:
            config = read_flags("train", job["flags"])
            mine = Workers(*(getattr(workers, name) for name in ("rank", "world", "local_rank", "local_world")),
                           parallel=config.parallel)  # fmt: skip
            run_job(job, mine)
