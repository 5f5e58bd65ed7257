"""Muon."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from slm.config.model import ModelConfig
from slm.learner.optim import Muon, make_optimizers, orthogonal
from slm.model.gpt import GPT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_about_1(dtype):
    torch.manual_seed(0)
    matrices = torch.randn(3, 32, 64) @ torch.diag(torch.logspace(0, -2, 64))
    values = torch.linalg.svdvals(orthogonal(matrices, 5, dtype).float())
    assert values.min() > 0.8
    assert values.max() < 1.3


def test_singular_vectors_stay():
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(2, 8, 16), full_matrices=False)
    matrices = u @ torch.diag_embed(torch.linspace(1, 0.1, 8).expand(2, 8)) @ vh
    assert torch.allclose(orthogonal(matrices, 5, torch.float32), u @ vh, atol=0.15)


def test_of_nothing_comes_nothing():
    assert not orthogonal(torch.zeros(1, 4, 4), 5, torch.float32).any()


def test_first_step_of_a_row():
    """A matrix of one row is made a unit vector; the step is 0.2 sqrt(4) lr of it, after the decay."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    weight.grad = torch.tensor([[0.0, 6.0, 0.0, -8.0]])
    optimizer = Muon([weight], lr=0.5, weight_decay=0.1, iterations=5)
    optimizer.step()
    expected = 0.95 * torch.tensor([[1.0, 2.0, 3.0, 4.0]]) - 0.2 * torch.tensor([[0.0, 0.6, 0.0, -0.8]])
    assert torch.allclose(weight.detach(), expected, atol=0.03)


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8), (24, 8)])
def test_several_matrices_at_once_are_as_one_after_another(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(3, *shape), torch.randn(2, 3, *shape)
    together = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    optimizers = [Muon(together, lr=0.1), *(Muon([matrix], lr=0.1) for matrix in alone)]
    for step in gradients:
        for matrices in (together, alone):
            for matrix, gradient in zip(matrices, step, strict=True):
                matrix.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_query_key_and_value_are_made_orthogonal_each_by_itself():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(24, 8))
    weight.grad = torch.randn(24, 8)
    Muon([weight], lr=1.0, weight_decay=0.0, iterations=5).step()
    for part in weight.detach().split(8):
        values = torch.linalg.svdvals(part) / (0.2 * 8**0.5)
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_every_parameter_has_one_optimizer():
    model = GPT(ModelConfig(vocab_size=300, context_length=8, n_layer=2, n_head=2, n_embd=16))
    names = {id(p): name for name, p in model.named_parameters()}
    for kind, matrices in (("adamw", 0), ("muon", 8)):
        optimizers = make_optimizers(model, kind, betas=(0.9, 0.95), weight_decay=0.1)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
        muon = [p for optimizer in optimizers[1:] for group in optimizer.param_groups for p in group["params"]]
        assert len(muon) == matrices
        decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
        assert decayed == {name for name, p in model.named_parameters() if p.dim() == 2}


def steps_of_one_process(rank, world, folder):
    """Five matrices of one shape and one of another; the weights after two steps are written by each process."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in [(8, 16)] * 5 + [(8, 8)]]
    for dtype in (torch.float32, torch.bfloat16):
        optimizer = Muon(weights, lr=0.1, dtype=dtype)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    torch.save([weight.detach() for weight in weights], f"{folder}/{rank}-of-{world}.pt")
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_processes_that_share_the_work_make_the_same_of_it(tmp_path):
    """Three of them: the last one of five matrices has one, and of a single matrix two have none."""
    torch.multiprocessing.spawn(steps_of_one_process, (3, str(tmp_path)), nprocs=3)
    steps_of_one_process(0, 1, tmp_path)
    expected, *found = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-1", "0-of-3", "1-of-3", "2-of-3"))
    for weights in found:
        for weight, alone in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight, alone, rtol=1e-5, atol=1e-5)
