"""SIGKILL at random moments: nothing is lost, nothing is half written, and the run ends as if nothing had been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def kills(*flags):
    command = [sys.executable, "-m", "tests.faults.kills", *flags]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a life of the run is a forked process")
@pytest.mark.slow
def test_a_run_killed_200_times_ends_as_an_undisturbed_one():
    figures = kills("--kills", "200", "--seed", "0")
    assert figures["kills"] == 200
    assert figures["equal_to_undisturbed"]
    assert figures["in"].keys() >= {"save", "step", "evaluation", "tokenising", "export"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a life of the run is a forked process")
def test_a_run_killed_some_times_ends_as_an_undisturbed_one():
    assert kills("--kills", "4", "--steps", "100", "--seed", "1")["kills"] == 4
