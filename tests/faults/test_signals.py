"""Real signals to real processes: whichever come, and whenever, a run is saved and says nothing but what it should."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm.checkpoint import file as checkpoint
from slm.data.stories import stories

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="these signals are POSIX's"),
    pytest.mark.slow,
]
ROOT = Path(__file__).parents[2]
# Each write to last.pt takes a while, and a file `saving` says that one is under way.
SLOW_SAVES = """
import os, sys, time
from pathlib import Path
from slm import cli, files
from slm.training import folder
save, fdopen, place = folder.save, os.fdopen, Path(sys.argv[1])

class Slow:
    def __init__(self, file): self.file = file
    def __getattr__(self, name): return getattr(self.file, name)
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def write(self, data):
        time.sleep(0.01)
        return self.file.write(data)

def slowly(*arguments):
    if place.exists():
        (place.parent.parent / "saving").touch()
        files.os.fdopen = lambda *a, **k: Slow(fdopen(*a, **k))
    save(*arguments)
    files.os.fdopen = fdopen

folder.save = slowly
cli.script(["train", *sys.argv[2:]])
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("<|endoftext|>".join(stories(60)))
    return path


def flags(text, out_dir, *more):
    own = [
        f"--dataset={text}", f"--cache_dir={text.parent / 'cache'}", f"--out_dir={out_dir}", "--val_fraction=0.1",
        "--vocab_size=300", "--context_length=16", "--n_layer=1", "--n_head=2", "--n_embd=16", "--batch_size=4",
        "--max_steps=1000000", "--eval_every=500000", "--eval_batches=1", "--precision=fp32", "--device=cpu",
        "--export=none",
    ]  # fmt: skip
    names = {flag.partition("=")[0] for flag in more}
    return [flag for flag in own if flag.partition("=")[0] not in names] + [*more]


def started(command, prefix=()):
    """A process of its own, and of its own group."""
    return subprocess.Popen(
        [*prefix, sys.executable, *command], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(path, process, seconds=120):
    """Until the process has made `path`."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ended(process, seconds=60):
    """Exit code, output and errors."""
    try:
        said, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, said, errors


def saved_step(out_dir):
    return checkpoint.load(out_dir / "last.pt").facts["step"]


@pytest.mark.parametrize("name", ["SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT"])
def test_a_signal_saves_the_run_and_is_its_exit_code(name, text, tmp_path):
    number = getattr(signal, name)
    process = started(["train.py", *flags(text, tmp_path / "run")])
    wait_for(tmp_path / "run" / "samples.jsonl", process)
    time.sleep(0.3)
    process.send_signal(number)
    code, said, errors = ended(process)
    assert code == 128 + number
    assert f"stopped and saved after step {saved_step(tmp_path / 'run'):,}; to continue: " in said
    assert saved_step(tmp_path / "run") > 0
    assert "Traceback" not in errors


def test_what_is_ignored_from_the_start_stays_ignored(text, tmp_path):
    process = started(["train.py", *flags(text, tmp_path / "run")], ["nohup"])
    wait_for(tmp_path / "run" / "samples.jsonl", process)
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    assert ended(process)[0] == 128 + signal.SIGUSR1


@pytest.mark.parametrize(
    "sequence", [("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGUSR1", "SIGTERM"), ("SIGINT", "SIGINT")]
)
def test_a_signal_in_a_save_does_not_break_it_off(sequence, text, tmp_path):
    process = started(["-c", SLOW_SAVES, tmp_path / "run" / "samples.jsonl", *flags(text, tmp_path / "run")])
    wait_for(tmp_path / "run" / "samples.jsonl", process)
    first, second = (getattr(signal, name) for name in sequence)
    process.send_signal(first)
    wait_for(tmp_path / "saving", process)
    time.sleep(0.02)
    process.send_signal(second)
    code, _, errors = ended(process)
    assert code == 128 + first
    assert "Traceback" not in errors
    assert saved_step(tmp_path / "run") > 0


@pytest.mark.parametrize("seed", range(12))
def test_any_signals_at_any_moment(seed, text, tmp_path):
    """Some come before the run begins, some at its end; up to six, a few to some hundred milliseconds apart."""
    chance, out_dir = random.Random(seed), tmp_path / "run"
    begins = seed % 3 > 0
    steps = "--max_steps=200" if seed % 3 == 1 else "--max_steps=1000000"
    process = started(["train.py", *flags(text, out_dir, "--save_every=0.0005", steps)])
    if begins:
        wait_for(out_dir / "samples.jsonl", process)
    time.sleep(chance.uniform(0.0, 1.0) if begins else chance.uniform(0.3, 2.5))
    sent = []
    for _ in range(chance.randint(2, 6)):
        name = chance.choice(["SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT"])
        sent.append(getattr(signal, name))
        process.send_signal(sent[-1])
        time.sleep(chance.choice([0.005, 0.02, 0.1, 0.3]))
    code, said, errors = ended(process)
    assert "Traceback" not in errors, (sent, errors)
    codes = {128 + number for number in sent}
    if steps == "--max_steps=200":
        codes.add(0)
    if begins:
        assert saved_step(out_dir) >= 0
    else:
        codes |= {-number for number in sent}  # before the program had begun to look after them
    assert code in codes, (sent, said)
    for name in (".last.pt.*", ".best_model.pt.*"):
        assert not list(out_dir.glob(name))
