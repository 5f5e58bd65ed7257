"""The device to be proven, and a toy run on it."""

import os

import pytest
import torch

from tests.runs import change, toy_config
from tests.training.conftest import called_by_script, text  # noqa: F401

WANTED = os.environ.get("SLM_TEST_DEVICE")
THERE = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None


@pytest.fixture
def device():
    """CUDA or Apple's GPU, or what SLM_TEST_DEVICE names; fp32 products are exact."""
    if not (WANTED or THERE):
        pytest.skip("there is no GPU that PyTorch can use; SLM_TEST_DEVICE=cpu tries these tests on the CPU")
    torch.set_float32_matmul_precision("highest")
    return torch.device(WANTED or THERE)


@pytest.fixture
def cuda(device):
    """The device, where it is NVIDIA's."""
    if device.type != "cuda":
        pytest.skip(f"is about CUDA alone, and this is {device.type}")
    return device


@pytest.fixture
def config(device, text, tmp_path):  # noqa: F811
    """12 steps in fp32 on the device, not compiled."""
    return change(toy_config(text, tmp_path / "run"), device=device.type, max_steps=12, eval_every=4, compile="off")
