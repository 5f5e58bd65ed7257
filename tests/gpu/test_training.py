"""Runs on the device: repeated, moved to and from a CPU, and in a group of one process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from slm.learner.workers import Workers
from tests.runs import change, load, rows, stopped_at, train
from tests.training.test_distributed import FLAGS

pytestmark = pytest.mark.gpu
MEASURES = ("train_loss", "val_loss", "gradient_norm")


def test_deterministic_runs_have_the_same_bits(device, text, tmp_path):
    """As the commands are called, in the precision and compiled as is the default on the device."""
    script = Path(__file__).parents[2] / "train.py"
    given = [flag for flag in FLAGS if not flag.startswith(("--device", "--precision", "--max_steps", "--eval_every"))]
    given += [f"--device={device.type}", "--max_steps=6", "--deterministic", "--dropout=0.1", f"--dataset={text}"]
    weights = []
    for name in ("one", "two"):
        folder = tmp_path / name
        subprocess.run(
            [sys.executable, script, *given, f"--out_dir={folder}", f"--cache_dir={tmp_path}"],
            check=True, capture_output=True,
        )  # fmt: skip
        weights.append(torch.load(folder / "last.pt", weights_only=True)["weights"])
    assert weights[0].keys() == weights[1].keys() != set()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_a_run_moves_from_a_cpu_to_the_device_and_back(device, config, tmp_path):
    """It goes on as if it had stayed where it began, and what it leaves is opened anywhere."""
    stayed = change(config, device="cpu", out_dir=str(tmp_path / "stayed"))
    assert train(stayed) == 0
    for place, stop, resume in (("cpu", 3, False), (device.type, 7, True), ("cpu", None, True)):
        moved = change(config, device=place, resume=resume)
        befall = stopped_at(stop) if stop else lambda run: None
        expected = 128 + signal.SIGINT if stop else 0
        assert train(moved, befall, workers=Workers(device=torch.device(place))) == expected
    kept = [row for row in rows(moved) if row["step"] in (0, 4, 8, 12)]
    for found, undisturbed in zip(kept, rows(stayed), strict=True):
        assert [found[name] for name in MEASURES] == pytest.approx([undisturbed[name] for name in MEASURES], rel=1e-3)
    assert {weight.device.type for weight in load(moved, "last.pt").weights.values()} == {"cpu"}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_group_of_one_process_trains_as_one_without(device, config, tmp_path, parallel):
    """NCCL on CUDA: gradients, losses, signs of life and saved weights go through it."""
    if device.type == "mps":
        pytest.skip("PyTorch has no process groups on Apple's GPU")
    alone = change(config, out_dir=str(tmp_path / "alone"))
    assert train(alone, workers=Workers(device=device)) == 0
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    here = torch.device("cuda", 0) if device.type == "cuda" else device
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        workers = Workers(parallel=parallel, device=here)
        assert train(change(config, parallel=parallel), workers=workers) == 0
        assert (workers.sharded is not None) == (parallel == "fsdp")
        assert float(workers.mean(torch.ones((), device=here))) == 1
    finally:
        dist.destroy_process_group()
    losses = {"train_loss": 1e-4, "val_loss": 1e-4, "gradient_norm": 2e-3}  # on CUDA 9e-4 were seen of the norm
    for found, expected in zip(rows(config), rows(alone), strict=True):
        for name, tolerance in losses.items():
            assert found[name] == pytest.approx(expected[name], rel=tolerance)
    matrices = {name: weight for name, weight in load(alone).weights.items() if weight.dim() == 2}
    for name, weight in matrices.items():  # the bias of keys has no gradient but rounding, which AdamW makes a step of
        torch.testing.assert_close(load(config).weights[name], weight, rtol=1e-3, atol=1e-4)
