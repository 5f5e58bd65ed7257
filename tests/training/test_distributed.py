"""Several processes and one do the same; what befalls one of them befalls the run, and the run survives it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from slm.checkpoint import file as checkpoint
from slm.cli import main as command
from slm.cli import read_flags
from slm.data.stories import stories
from slm.errors import UserError
from slm.learner.workers import Workers
from slm.run_files import read_rows
from slm.training import plan
from tests.training import worker

MIXED = [("ddp", "adamw"), ("fsdp", "muon")]
KINDS = [(parallel, optimizer) for parallel in ("ddp", "fsdp") for optimizer in ("adamw", "muon")]
FLAGS = [
    "--vocab_size=400", "--context_length=16", "--n_layer=2", "--n_head=2", "--n_embd=16", "--val_fraction=0.1",
    "--batch_size=2", "--global_batch_tokens=128", "--learning_rate=0.01", "--max_steps=50", "--eval_every=25",
    "--eval_batches=2", "--precision=fp32", "--device=cpu", "--export=none",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a text; runs get folders in it."""
    path = tmp_path_factory.mktemp("distributed")
    (path / "text.txt").write_text("<|endoftext|>".join(stories(80)))
    return path


def flags(there, name, *more):
    given = [f"--dataset={there / 'text.txt'}", f"--cache_dir={there / 'cache'}", f"--out_dir={there / name}", *more]
    replaced = {flag.partition("=")[0] for flag in given}
    return [flag for flag in FLAGS if flag.partition("=")[0] not in replaced] + given


def start(there, world, jobs, *options):
    """torchrun of so many processes that do `jobs`, started."""
    path = there / f"jobs{time.time_ns()}.json"
    path.write_text(json.dumps(jobs))
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}", *options]
    if "--standalone" not in options:
        torchrun += ["--standalone"]
    return subprocess.Popen(
        [*torchrun, worker.__file__, str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip


def launch(there, world, jobs, *options):
    """The same, to its end: exit code, output, errors, seconds."""
    begun = time.monotonic()
    process = start(there, world, jobs, *options)
    try:
        said, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, said, errors, time.monotonic() - begun


def alone(jobs, monkeypatch):
    """The same jobs in this process."""
    with monkeypatch.context() as patch:
        for owner, name in ((worker.evaluator, "SAMPLE_LENGTH"), (worker.report, "draw"), (worker.checkpoint, "save")):
            patch.setattr(owner, name, getattr(owner, name))
        patch.setattr(sys, "argv", ["train.py"])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for job in jobs:
            worker.run_job(job, Workers())
        torch.set_num_threads(threads)


def measures(folder):
    """What does not depend on the time."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in read_rows(folder)]


def assert_same_course(folder, other):
    assert len(measures(folder)) == len(measures(other))
    for mine, theirs in zip(measures(folder), measures(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def courses(there):
    """The same runs by 1, 2 and 4 processes, and runs begun by so many and ended by others."""
    with pytest.MonkeyPatch.context() as monkeypatch:

        def job(name, parallel, optimizer, *more, **befalls):
            return {"flags": flags(there, name, f"--parallel={parallel}", f"--optimizer={optimizer}", *more),
                    "log": str(there / f"{name}.log"), **befalls}  # fmt: skip

        def copied(name, to):
            shutil.copytree(there / name, there / to)

        def all_of(world):
            return [job(f"{p}-{o}-{world}", p, o) for p, o in KINDS]

        stopped = [job(f"stopped-{p}-{o}-2", p, o, stop=23) for p, o in MIXED]
        one = [job(f"ddp-{o}-1", "ddp", o) for o in ("adamw", "muon")]
        alone([*one, *(job(f"stopped-{o}-1", "ddp", o, stop=23) for o in ("adamw", "muon"))], monkeypatch)
        for p, o in MIXED:
            copied(f"stopped-{o}-1", f"1-to-2-{p}-{o}")
        resumed = [job(f"1-to-2-{p}-{o}", p, o, "--resume") for p, o in MIXED]
        code, _, errors, _ = launch(there, 2, [*all_of(2), *stopped, *resumed])
        assert code == 0, errors
        for p, o in MIXED:
            copied(f"stopped-{p}-{o}-2", f"2-to-4-{p}-{o}")
            copied(f"stopped-{p}-{o}-2", f"2-to-1-{p}-{o}")
        resumed = [job(f"2-to-4-{p}-{o}", p, o, "--resume") for p, o in MIXED]
        code, _, errors, _ = launch(there, 4, [*all_of(4), *resumed])
        assert code == 0, errors
        alone([job(f"2-to-1-{p}-{o}", p, o, "--resume") for p, o in MIXED], monkeypatch)
    return there


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("parallel", "optimizer"), KINDS)
def test_the_same_losses_on_the_same_windows_whatever_the_number_of_processes(courses, parallel, optimizer, world):
    names = (f"ddp-{optimizer}-1", f"{parallel}-{optimizer}-{world}")
    one, many = (json.loads((courses / f"{name}.log").read_text()) for name in names)
    assert len(one["losses"]) == 50
    assert one["losses"][-1] < one["losses"][0] - 1
    assert many["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert len(one["starts"][0]) == 8
    assert [sorted(step) for step in many["starts"]] == [sorted(step) for step in one["starts"]]
    assert_same_course(courses / names[1], courses / names[0])


@pytest.mark.slow
@pytest.mark.parametrize("change", ["1-to-2", "2-to-4", "2-to-1"])
@pytest.mark.parametrize(("parallel", "optimizer"), MIXED)
def test_a_run_goes_on_with_another_number_of_processes(courses, parallel, optimizer, change):
    assert_same_course(courses / f"{change}-{parallel}-{optimizer}", courses / f"ddp-{optimizer}-1")
    log = json.loads((courses / f"{change}-{parallel}-{optimizer}.log").read_text())
    assert len(log["losses"]) == 27  # of the 50, those after the stop


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "optimizer"), KINDS)
def test_files_are_the_same_however_many_wrote_them(courses, parallel, optimizer):
    names = (f"ddp-{optimizer}-1", f"{parallel}-{optimizer}-4")
    one, four = (checkpoint.load(courses / name / "last.pt") for name in names)
    assert one.training.keys() == four.training.keys()
    for name, weight in one.weights.items():
        torch.testing.assert_close(four.weights[name], weight, rtol=1e-4, atol=1e-4, msg=name)
    for mine, theirs in zip(one.training["optimizers"], four.training["optimizers"], strict=True):
        assert mine["state"].keys() == theirs["state"].keys()
        for number, state in mine["state"].items():
            for name, value in state.items():
                torch.testing.assert_close(theirs["state"][number][name], value, rtol=1e-3, atol=1e-4, msg=name)
    mine, theirs = (checkpoint.load(courses / name / "best_model.pt").facts for name in names)
    assert theirs["val"]["loss"] == pytest.approx(mine["val"]["loss"], abs=1e-5)
    assert theirs["val"]["tokens"] == mine["val"]["tokens"]


def failing(there, name, *more, **befalls):
    """Two processes on a run that something befalls."""
    return launch(there, 2, [{"flags": flags(there, name, "--save_every=0.0001", *more), **befalls}])


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_and_is_what_is_said(there):
    code, _, errors, seconds = failing(there, "failed", fail=[1, 5])
    assert code != 0
    assert "error: process 1 of 2: this one has had enough: give it less" in errors
    assert "Traceback" not in errors[: errors.index("this one has had enough")]
    assert seconds < 60
    assert checkpoint.load(there / "failed" / "last.pt").facts["step"] == 4


@pytest.mark.slow
def test_a_killed_process_ends_all(there):
    code, _, errors, seconds = failing(there, "killed", kill=[[0, 1, 5]])
    assert code != 0
    assert "error: process 0 of 2: another process of the run is gone or cannot be reached" in errors
    assert "SIGKILL" in errors
    assert seconds < 60


@pytest.mark.slow
def test_flags_that_are_wrong_are_told_once(there):
    code, said, errors, _ = launch(
        there, 4, [{"flags": flags(there, "wrong", "--global_batch_tokens=96", "--n_head=3")}]
    )
    assert code != 0
    for problem in (
        "--n_embd 16 is not divisible by --n_head 3: try --n_head 2",
        "--global_batch_tokens 96 is not a multiple of 4 processes x 16 tokens of context: try 128",
    ):
        assert (said + errors).count(problem) == 1


@pytest.mark.slow
def test_restarted_processes_go_on_to_the_end_of_the_undisturbed_run(courses):
    """One after another is killed; an older run lies in the folder, which --overwrite must not bring back."""
    shutil.copytree(courses / "ddp-muon-1", courses / "elastic")
    job = {
        "flags": flags(courses, "elastic", "--save_every=0.0001", "--overwrite"),
        "kill": [[0, 1, 1], [1, 1, 23], [2, 0, 37]],
    }
    code, said, errors, _ = launch(courses, 2, [job], "--max-restarts=3")
    assert code == 0, errors
    assert said.count("resuming   after step") == 2  # the first one had saved step 0 alone
    assert_same_course(courses / "elastic", courses / "ddp-muon-1")


@pytest.mark.slow
def test_what_befalls_one_process_is_decided_by_all(courses):
    """A signal, a loss that is no number, a full disk, early stopping, the clock: none leaves others behind."""
    names = ("signal", "nan", "full", "patience", "clock")
    more = {"patience": ["--patience=2", "--eval_every=1", "--learning_rate=1e-30"]}
    befalls = {"signal": {"stop_first": 23}, "nan": {"nan": [1, 3, 24]}, "full": {"full": [20, 30]}}
    jobs = [{"flags": flags(courses, f"all-{name}", *more.get(name, [])), **befalls.get(name, {})} for name in names]
    jobs[-1]["flags"] = [flag for flag in jobs[-1]["flags"] if "max_steps" not in flag and "eval_every" not in flag]
    jobs[-1]["flags"] += ["--max_minutes=0.1"]
    code, said, errors, _ = launch(courses, 2, jobs)
    assert code == 0, errors
    assert "stopped and saved after step 23" in said
    assert checkpoint.load(courses / "all-signal" / "last.pt").facts["step"] == 23
    assert read_rows(courses / "all-nan")[-1]["rollbacks"] == 1
    assert "No space left on device" in said
    assert_same_course(courses / "all-full", courses / "ddp-muon-1")
    assert read_rows(courses / "all-patience")[-1]["step"] == 2
    assert read_rows(courses / "all-clock")[-1]["seconds"] < 7


@pytest.fixture
def under_way(there):
    """torchrun, training without end in the folder that this gives, too; and the ids of its processes."""
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc to find the processes of torchrun")
    folder = there / f"under-way-{time.time_ns()}"
    process = start(there, 2, [{"flags": flags(there, folder.name, "--max_steps=1000000", "--eval_every=1000000")}])
    deadline = time.monotonic() + 120
    while not (folder / "samples.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, folder, [int(child) for child in children]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_torchrun_saves_the_run(under_way, name):
    process, folder, _ = under_way
    process.send_signal(getattr(signal, name))
    said, errors = process.communicate(timeout=60)
    assert "stopped and saved after step" in said, errors
    assert checkpoint.load(folder / "last.pt").facts["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "name"), [(0, "SIGUSR1"), (1, "SIGUSR2"), (1, "SIGXCPU")])
def test_a_signal_to_any_process_saves_the_run(under_way, rank, name):
    process, folder, children = under_way
    os.kill(children[rank], getattr(signal, name))
    said, errors = process.communicate(timeout=60)
    assert "stopped and saved after step" in said, errors
    assert f"exitcode  : {128 + getattr(signal, name)}" in errors
    assert checkpoint.load(folder / "last.pt").facts["step"] > 0


def is_alive(process_id):
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_processes_save_the_run_and_end_when_torchrun_is_killed(under_way):
    process, folder, children = under_way
    process.kill()
    said, _ = process.communicate(timeout=60)  # until its processes have closed its output, too
    assert "stopped and saved after step" in said
    assert checkpoint.load(folder / "last.pt").facts["step"] > 0
    deadline = time.monotonic() + 60
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_documented_command_trains_with_two_processes(there):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(worker.__file__).parents[2] / "train.py"
    done = subprocess.run(
        [*torchrun, script, *flags(there, "documented", "--max_steps=4")],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("128 tokens a step") == 1
    assert "2 processes (ddp), each: CPU" in done.stdout
    assert [row["step"] for row in read_rows(there / "documented")] == [0, 4]
    assert command(["evaluate", f"--model_path={there / 'documented'}", "--text=Once upon a time"]) == 0


def test_a_step_is_divided_so_that_all_have_equally_much():
    assert plan.divide_step(sequences=8, batch_size=8, world=1) == (8, 1)
    assert plan.divide_step(sequences=8, batch_size=8, world=4) == (2, 1)
    assert plan.divide_step(sequences=24, batch_size=5, world=2) == (4, 3)
    with pytest.raises(UserError, match="3 processes cannot share the 8 sequences of a step equally: start 2"):
        plan.divide_step(sequences=8, batch_size=4, world=3)


def test_the_global_batch_is_what_must_stay_on_resume(there, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    given = [flag for flag in flags(there, "batch", "--max_steps=2") if "batch_tokens" not in flag]
    assert command(["train", *given]) == 0
    resume = ["train", "--resume", f"--out_dir={there / 'batch'}", "--max_steps=4"]
    assert command([*resume, "--batch_size=1", "--grad_accum=2"]) == 0
    assert command([*resume, "--batch_size=4", "--grad_accum=1"]) == 2


def test_global_batch_tokens_and_grad_accum_exclude_each_other(there):
    with pytest.raises(UserError) as error:
        read_flags("train", flags(there, "never", "--grad_accum=2", "--global_batch_tokens=100"))
    assert error.value.problems == (
        "--global_batch_tokens 100 is not a multiple of 16 tokens of context: try 96",
        "--global_batch_tokens and --grad_accum exclude each other: the first determines the second",
    )
