"""Output that cannot be written: a run goes on without it, other commands end with a code that says so."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm import cli
from slm.checkpoint import file as checkpoint
from slm.errors import UserError
from tests.faults.test_signals import ROOT, flags, saved_step, text, wait_for  # noqa: F401

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def output(path, needed):
    return io.TextIOWrapper(cli._Output(os.open(path, os.O_WRONLY), needed), encoding="ascii", errors="replace")


def test_what_need_not_be_heard_may_be_lost():
    with output("/dev/full", needed=False) as stream:
        for _ in range(3):
            print("é" * 100_000, file=stream, flush=True)


def test_the_first_loss_of_what_is_needed_is_an_error_and_the_next_none():
    stream = output("/dev/full", needed=True)
    with pytest.raises(UserError, match="cannot write to standard output: No space left on device"):
        print("a", file=stream, flush=True)
    print("b", file=stream, flush=True)


def test_a_pipe_that_nobody_reads_is_told_apart():
    reader, writer = os.pipe()
    os.close(reader)
    stream = io.TextIOWrapper(cli._Output(writer, needed=True))
    with pytest.raises(BrokenPipeError):
        print("a", file=stream, flush=True)


def test_a_slow_reader_gets_everything():
    reader, writer = os.pipe()
    child = subprocess.Popen(["sh", "-c", "sleep 0.2; wc -c"], stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    stream = io.TextIOWrapper(cli._Output(writer, needed=True))
    stream.write("a" * 1_000_000)
    stream.flush()
    os.close(writer)
    assert int(child.communicate()[0]) == 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "unbuffered"),
    [
        (">/dev/full 2>/dev/full", ""), (">/dev/full 2>/dev/full", "1"), ("2>/dev/full", ""), (">&- 2>&-", ""),
        ("2>&1 | head -n 2", "1"), ("2>&1 | head -c 0", ""),
    ],
)  # fmt: skip
def test_a_run_that_nobody_hears_goes_on_to_its_end(where, unbuffered, text, tmp_path):  # noqa: F811
    command = " ".join([sys.executable, "train.py", *flags(text, tmp_path / "run", "--max_steps=60")])
    subprocess.run(
        ["bash", "-c", f"({command}; echo $? > {tmp_path / 'code'}) {where}"], cwd=ROOT, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": unbuffered}, check=False, timeout=120,
    )  # fmt: skip
    assert (tmp_path / "code").read_text() == "0\n"
    assert saved_step(tmp_path / "run") == 60
    assert checkpoint.load(tmp_path / "run" / "best_model.pt").facts["step"] == 60


@pytest.mark.slow
def test_a_reader_that_is_killed_changes_nothing_and_a_signal_still_saves(text, tmp_path):  # noqa: F811
    tee = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(
        [sys.executable, "train.py", *flags(text, tmp_path / "run", "--save_every=0.001")],
        cwd=ROOT, stdout=tee.stdin, stderr=tee.stdin,
    )  # fmt: skip
    tee.stdin.close()
    wait_for(tmp_path / "run" / "samples.jsonl", process)
    tee.kill()
    tee.wait()
    before = saved_step(tmp_path / "run")
    until = time.monotonic() + 60
    while saved_step(tmp_path / "run") == before and time.monotonic() < until:
        time.sleep(0.2)
    assert process.poll() is None
    assert saved_step(tmp_path / "run") > before
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_the_run(text, tmp_path):  # noqa: F811
    """SIGHUP comes, and whatever is written from then on is an I/O error."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "train.py", *flags(text, tmp_path / "run")])
    deadline = time.monotonic() + 60
    os.set_blocking(terminal, False)
    while not (tmp_path / "run" / "samples.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert saved_step(tmp_path / "run") > 0


@pytest.mark.slow
@pytest.mark.parametrize(("where", "code", "said"), [
    (">/dev/full", 2, "error: cannot write to standard output: No space left on device\n"),
    ("2>/dev/full", 0, ""),
    (">&-", 0, ""),
    ("| head -c 0", 141, ""),
])  # fmt: skip
def test_other_commands_end_quietly(where, code, said, trained, tmp_path):
    command = f"{sys.executable} generate.py {trained} 'Once upon' --max_length=5 --num_samples=9 --device=cpu"
    ran = subprocess.run(
        ["bash", "-c", f"({command}; echo $? > {tmp_path / 'code'}) {where}"], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert (tmp_path / "code").read_text() == f"{code}\n"
    assert ran.stderr == said
