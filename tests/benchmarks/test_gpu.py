"""The runner of benchmarks/gpu.py: what it keeps, and what it does when a part goes wrong."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu", PATH)
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)

WHERE = {"device": "NVIDIA H100", "torch": "2.11.0"}
ROW = {"row": "compiled", "tokens_per_second": 1_234_567.8, "mfu": 0.4125, "bytes": 2_500_000_000, "first_step": 31.27}


def test_one_line_for_each_row_with_blanks_for_what_was_not_measured():
    said = gpu.table([{"part": "training", "rows": [ROW], "error": "not done after 180 s", "took": 180.2}])
    heading, part, row = said.splitlines()
    assert heading.split("  ")[-1].strip() == "val loss"
    assert part == "training: not done after 180 s (180 s)"
    assert row.split() == ["compiled", "1,234,568", "41.2%", "2.50", "31.3"]


def test_what_failed_or_was_cut_off_or_is_of_elsewhere_is_measured_again(tmp_path):
    lines = [
        {**WHERE, "part": "machine", "error": "", "rows": [ROW]},
        {**WHERE, "part": "head", "error": "ended with -9", "rows": []},
        {**WHERE, "part": "peers", "error": "", "rows": [], "device": "NVIDIA H200"},
    ]
    path = tmp_path / "gpu.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), '{"device": "NVIDIA H100", "tor']))
    assert gpu.measured(path, WHERE) == {"machine": lines[0]}
    assert gpu.measured(tmp_path / "none", WHERE) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "limit", "error"), [("machine", 0.5, "not done after 0 s"), ("nothing", 60, "invalid choice: 'nothing'")]
)
def test_a_part_that_hangs_or_dies_is_a_row_with_its_error(part, limit, error, tmp_path):
    flags = argparse.Namespace(device="cpu", train="stories", cache_dir=str(tmp_path), nanogpt=None)
    found = gpu.run_part(part, flags, limit)
    assert error in found["error"]
    assert found["rows"] == []


@pytest.mark.slow
def test_it_runs_through_on_a_cpu_and_then_has_nothing_left_to_do(tmp_path):
    """Its documented call, with a peer that is not there."""
    command = [sys.executable, PATH, "--device", "cpu", "--results", tmp_path / "gpu.jsonl", "--nanogpt", tmp_path]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    found = json.loads(runs[0].stdout.splitlines()[-1])
    assert found["missing"] == []
    assert {result["part"]: result["error"] for result in found["results"]} == dict.fromkeys(gpu.PARTS, "")
    wrong = [row for result in found["results"] for row in result["rows"] if "error" in row]
    assert [row["row"] for row in wrong] == ["nanoGPT"]
    assert runs[1].stdout == runs[0].stdout
    assert runs[1].stderr == ""
