"""What happens in one optimizer step."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slm.config.model import ModelConfig
from slm.learner.learner import Learner
from slm.learner.optim import make_optimizers
from slm.model.gpt import GPT, through

CPU = torch.device("cpu")


def learner(**settings):
    """A toy model's, with a batch of 8 sequences."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=300, context_length=16, n_layer=2, n_head=2, n_embd=16))
    optimizers = make_optimizers(model, "muon", betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.randint(300, (8, 17))
    return Learner(model, optimizers, device=CPU, dtype=torch.float32, **settings), [(ids[:, :-1], ids[:, 1:])] * 2


class Reads(TorchDispatchMode):
    """Counts what makes a program wait for its device: reading a value, and results whose size depends on values."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name.startswith("index") and any(getattr(i, "dtype", None) == torch.bool for i in args[1])
        if masks or name in ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_the_guard_sees_reads():
    with Reads() as reads:
        torch.ones(1).item()
        bool(torch.ones(()).isfinite())
        torch.ones(2)[torch.ones(2) > 0]
        torch.arange(2).nonzero()
    assert reads.names == ["_local_scalar_dense"] * 2 + ["index", "nonzero"]


def test_a_step_reads_nothing_from_the_device_but_on_a_cpu_whether_the_gradient_is_finite():
    subject, batches = learner(grad_clip=1.0)
    subject.step(batches, rate=0.01, seed=0)
    with Reads() as reads:
        subject._gradients(batches, subject.loss, 2)
    assert reads.names == []
    with Reads() as reads:
        subject.step(batches, rate=0.01, seed=1)
    assert reads.names == ["_local_scalar_dense"]


def test_a_step_has_the_loss_and_accuracy_of_all_its_tokens():
    subject, batches = learner()
    for seed in range(20):
        subject.step(batches, rate=0.02, seed=seed)
    with torch.no_grad():
        nats, correct = subject.model.loss(*batches[0])
    assert int(correct) > 10
    outcome = subject.step(batches, rate=0.02, seed=20, pieces=3)
    assert float(outcome.loss) == pytest.approx(float(nats) / 128, rel=1e-5)
    assert float(outcome.accuracy) == pytest.approx(int(correct) / 128)


def with_compiler(monkeypatch, compiled_block):
    monkeypatch.setattr(torch, "compile", lambda run, dynamic: lambda *given: compiled_block(run, *given))


def test_a_compiler_that_gives_other_gradients_is_not_used(monkeypatch, capsys):
    subject, batches = learner(compile="on")
    with_compiler(monkeypatch, lambda run, block, x: 0 * run(block, x))
    subject.step(batches, rate=0.01, seed=0)
    assert subject.model.compiled_block is None
    said = capsys.readouterr().out
    assert said.startswith("torch.compile does not work here (its gradient has the norm 0.")
    assert said.endswith("); training goes on without it\n")


def test_a_compiler_that_gives_the_same_is_used_in_training_alone(monkeypatch, capsys):
    calls = []
    with_compiler(monkeypatch, lambda run, *given: calls.append(run) or run(*given))
    results = []
    for compile in ("on", "off"):
        subject, batches = learner(compile=compile)
        outcome = subject.step(batches, rate=0.01, seed=0)
        results.append((outcome.loss, *subject.model.parameters()))
        assert len(calls) == 6  # two blocks, once to try and in two micro-batches
    with torch.no_grad():
        subject.model.loss(*batches[0])
    assert len(calls) == 6
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("compile", ["on", "off"])
def test_memory_short_in_the_first_step_halves_it(monkeypatch, compile):
    """Also where what is tried for the compiler is already too much."""

    def small(run, block, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return run(block, x)

    with_compiler(monkeypatch, small)
    subject, batches = learner(compile=compile)
    if compile == "off":
        subject.model.compiled_block = lambda *given: small(through, *given)
    plain, _ = learner()
    assert subject.step(batches, rate=0.01, seed=0).pieces == 4
    plain.step(batches, rate=0.01, seed=0, pieces=4)
    for one, other in zip(subject.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
