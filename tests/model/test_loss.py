"""The chunked output layer and loss against PyTorch's plain one."""

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


@pytest.mark.parametrize("shared", [1, 9])
@pytest.mark.usefixtures("several_chunks")
def test_in_place_or_not_is_the_same(shared):
    """The last row is the likeliest and the target of some: as one of several it is a right guess of none."""
    hidden, weight, targets = rows(torch.float32)
    with torch.no_grad():
        weight[-1] = 3 * hidden[3]
    targets[3] = 49
    results = [
        compute(hidden.detach(), weight.detach(), targets, shared, True, module.CHUNK_ELEMENTS // 50)
        for compute in (module._in_place, module._out_of_place)
    ]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert results[0][1] > 0


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("several_chunks")
def test_compiled_whole_it_has_the_same_value_and_gradients(backend):
    """PyTorch 2.11 compiled a gradient that was filled in after it was made to zeros."""
    hidden, weight, targets = rows(torch.float32)
    compiled = torch.compile(linear_cross_entropy, backend=backend, fullgraph=True)
    results = []
    for function in (linear_cross_entropy, compiled):
        loss, correct = function(hidden, weight, targets, 9)
        results.append((loss, correct, *torch.autograd.grad(3 * loss, (hidden, weight))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert ours.any()


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
        ("cuda", 16e9, 83_333_333),  # 0.5 GB at 6 bytes
        ("cuda", 80e9, 1 << 28),
    ],
)
def test_logits_held_at_a_time_by_device(device, memory, elements, monkeypatch):
    known = SimpleNamespace(total_memory=int(memory or 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda of: known)
    assert module.chunk_elements(torch.device(device)) == elements
