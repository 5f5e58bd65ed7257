"""The chunked output layer and loss against PyTorch's plain one."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from slm.model import loss as module
from slm.model.loss import linear_cross_entropy


@pytest.fixture(params=[1 << 24, 128 * 50])
def several_chunks(request, monkeypatch):
    """One chunk for all 300 rows, and three of them with a ragged end."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", request.param)


def rows(dtype=torch.float64):
    torch.manual_seed(0)
    hidden = torch.randn(300, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, dtype=dtype, requires_grad=True)
    targets = torch.randint(50, (300,))
    targets[::7] = -1
    return hidden, weight, targets


def plain(hidden, weight, targets):
    logits = hidden @ weight.T
    correct = ((logits.argmax(-1) == targets) & (targets >= 0)).sum()
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum"), correct


@pytest.mark.usefixtures("several_chunks")
def test_value_gradients_and_accuracy_are_exact():
    hidden, weight, targets = rows(torch.float32)
    expected, expected_correct = plain(hidden.double(), weight.double(), targets)
    expected_gradients = torch.autograd.grad(3 * expected, (hidden, weight))
    loss, correct = linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(3 * loss, (hidden, weight))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert correct.item() == expected_correct.item()
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_literal_values():
    hidden, weight = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]])
    loss, correct = linear_cross_entropy(hidden, weight, torch.tensor([1, 0]))
    # softplus(-1) + softplus(2) = 0.313262 + 2.126928
    assert loss.item() == pytest.approx(2.440190, abs=1e-6)
    assert correct.item() == 1


def test_ignored_rows_have_no_gradient():
    hidden, weight, targets = rows()
    linear_cross_entropy(hidden, weight, targets)[0].backward()
    assert not hidden.grad[::7].any()
    assert hidden.grad[1].any()


def test_all_rows_ignored():
    hidden, weight, targets = rows()
    loss, correct = linear_cross_entropy(hidden, weight, torch.full_like(targets, -1))
    loss.backward()
    assert loss.item() == 0
    assert correct.item() == 0
    assert not weight.grad.any()


def test_very_unlikely_targets_keep_their_loss():
    weight = torch.tensor([[0.0], [200.0]])
    loss, _ = linear_cross_entropy(torch.ones(1, 1), weight, torch.tensor([0]))
    assert loss.item() == pytest.approx(200.0)


def test_without_gradients_none_are_kept():
    hidden, weight, targets = rows()
    with torch.no_grad():
        loss, _ = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad


def test_autocast_to_bf16_stays_near():
    hidden, weight, targets = rows(torch.float32)
    expected, _ = plain(hidden, weight, targets)
    expected_gradient = torch.autograd.grad(expected, weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, targets)
    gradient = torch.autograd.grad(loss, weight)[0]
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert F.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0) > 0.999


@pytest.mark.usefixtures("several_chunks")
def test_a_shared_row_counts_several_times_and_is_a_right_guess_of_none():
    """The last row is the likeliest and the target of some."""
    hidden, weight, targets = rows(torch.float32)
    with torch.no_grad():
        weight[-1] = 3 * hidden[3]
    targets[3] = 49
    logits = hidden @ weight.T
    several = torch.cat([logits, logits[:, -1:].expand(-1, 8)], 1)
    expected = F.cross_entropy(several, targets, ignore_index=-1, reduction="sum")
    right = (logits.argmax(1) == targets) & (targets < 49) & (targets >= 0)
    loss, correct = linear_cross_entropy(hidden, weight, targets, 9)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert correct.item() == right.sum().item() > 0
    pairs = (torch.autograd.grad(each, (hidden, weight)) for each in (loss, expected))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


KERNEL = """
import math, torch
from slm.model import loss, loss_cuda
torch.manual_seed(0)
fp32, bf16 = torch.float32, torch.bfloat16
for dtype, V, shared in ((fp32, 50, 1), (fp32, 50, 9), (bf16, 50, 9), (bf16, 9000, 1)):
    logits = torch.randn(6, V + 14, dtype=dtype)
    logits[:, V:] = 0
    logits[4, V - 1] = logits[5, 7] = logits[5, 9] = 9  # the shared row is the likeliest, two are
    given = (torch.tensor([3, 40, -1, int(logits[3, :V].argmax()), V - 1, 7]), V - (shared > 1), math.log(shared), True)
    x, plain = logits.clone(), logits.clone()
    own = plain[:, :V]
    results = [(*loss_cuda.to_gradient(x, V, *given), x)]
    results += [(*loss.to_gradient(own, *given, own if dtype == fp32 else own.float()), plain)]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours.float(), expected.float(), rtol=1e-2 if dtype == bf16 else 1e-5, atol=1e-6)
    assert results[0][1] >= 2
"""


def test_the_kernel_for_cuda_computes_the_same():
    """In Triton's interpreter, which has to be on before Triton is loaded."""
    pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for CUDA; here in its interpreter")
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_where_the_kernel_cannot_be_built_a_line_says_so(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "slm.model.loss_cuda", None)
    assert module.cuda_kernel.__wrapped__() is None
    said = capsys.readouterr().out
    assert said.startswith("the loss is computed without its CUDA kernel, which takes longer (ModuleNotFoundError: ")
    assert said.count("\n") == 1


def test_in_fp16_a_gradient_summed_over_many_rows_does_not_overflow():
    hidden = torch.full((16_384, 1), 10.0, requires_grad=True)
    weight = torch.zeros(2, 1, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss, _ = linear_cross_entropy(hidden, weight, torch.zeros(16_384, dtype=torch.int64))
    loss.backward()
    assert weight.grad.tolist() == [[-81_920.0], [81_920.0]]  # 16,384 rows of 10 times 1/2, above fp16's 65,504


@pytest.mark.parametrize(
    ("device", "memory", "elements"),
    [
        ("cpu", None, 1 << 25),
        ("mps", None, 1 << 25),
        ("cuda", 4e9, 1 << 25),
        ("cuda", 16e9, 125_000_000),  # 0.5 GB at 4 bytes
        ("cuda", 140e9, 1 << 30),
    ],
)
def test_logits_held_at_a_time_by_device(device, memory, elements, monkeypatch):
    known = SimpleNamespace(total_memory=int(memory or 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda of: known)
    assert module.chunk_elements(torch.device(device)) == elements
