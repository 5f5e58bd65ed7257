"""Two machines, as network namespaces joined by a cable that can be pulled out."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from slm.checkpoint import file as checkpoint
from tests.training import worker
from tests.training.test_distributed import ENVIRONMENT, assert_same_course, flags, there  # noqa: F401

PORT = 29_581


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


@pytest.fixture
def machines():
    """The names of two namespaces with the addresses 10.77.0.1 and 10.77.0.2."""
    if not shutil.which("ip"):
        pytest.skip("needs the program ip (iproute2)")
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    names = [f"slm{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            # torchrun itself waits for the system to give a connection up: a quarter of an hour by default
            ip("netns", "exec", name, "sh", "-c", "echo 8 > /proc/sys/net/ipv4/tcp_retries2")
            for link in ("lo", "cable"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def start(there, machines, job):  # noqa: F811
    """torchrun of one process on each of the machines."""
    path = there / f"jobs{time.time_ns()}.json"
    path.write_text(json.dumps([job]))
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=10.77.0.1:{PORT}", f"--rdzv-id={path.stem}",
    ]  # fmt: skip
    environment = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "cable"}
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", machine, *torchrun, f"--local-addr=10.77.0.{number}",
             f"--rdzv-conf=is_host={number == 1}", worker.__file__, str(path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for number, machine in enumerate(machines, 1)
    ]  # fmt: skip


def ends(processes, timeout):
    """What each has said, and when the last had ended."""
    begun = time.monotonic()
    try:
        return [process.communicate(timeout=timeout) for process in processes], time.monotonic() - begun
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_a_run_whose_cable_is_cut_ends_in_words_and_goes_on_to_the_same_loss(there, machines, monkeypatch):  # noqa: F811
    from tests.training.test_distributed import alone

    alone([{"flags": flags(there, "one")}], monkeypatch)
    cut = there / "cut"
    processes = start(there, machines, {"flags": flags(there, "cut", "--save_every=0.0001"), "wait": 23})
    deadline = time.monotonic() + 120
    while not (cut / "waiting").exists():
        assert all(process.poll() is None for process in processes), ends(processes, 60)
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ip("-n", machines[1], "link", "set", "cable", "down")
    (cut / "waiting").unlink()
    said, seconds = ends(processes, 200)
    assert [process.returncode != 0 for process in processes] == [True, True]
    for number, (_, errors) in enumerate(said):
        assert f"error: process {number} of 2: another process of the run is gone or cannot be reached" in errors
    assert seconds < 180
    assert checkpoint.load(cut / "last.pt").facts["step"] in (22, 23)
    ip("-n", machines[1], "link", "set", "cable", "up")
    processes = start(there, machines, {"flags": ["--resume", f"--out_dir={cut}"]})
    said, _ = ends(processes, 200)
    assert [process.returncode for process in processes] == [0, 0], said
    assert_same_course(cut, there / "one")
