"""What is known of a device."""

import math

import torch

from slm import device

CPU = torch.device("cpu")


def test_this_process_and_machine():
    held = device.peak_memory(CPU)
    assert held is None or 1e8 < held < device.total_memory(CPU)
    assert device.total_memory(CPU) > 1e9
    assert 1e8 < device.flops(CPU, torch.float32) < math.inf
    assert device.peak_flops(CPU) is None


def test_a_gpu_of_the_table(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda of: "NVIDIA H100 PCIe")
    assert device.peak_flops(torch.device("cuda")) == 756e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda of: "NVIDIA L40S")
    assert device.peak_flops(torch.device("cuda")) == 362e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda of: "something new")
    assert device.peak_flops(torch.device("cuda")) is None
