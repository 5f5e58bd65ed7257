"""The parts of a run put together, and what a single step computes."""

import dataclasses
import math

import pytest
import torch

from slm import device
from slm.data.corpus import prepare
from slm.errors import UserError
from slm.learner import check
from slm.training.run import assemble
from tests.runs import CPU, change, new_run, step, train


def test_accumulated_gradients_equal_the_large_batch(config, tmp_path):
    config = change(config, learning_rate=0.01, optimizer="adamw")
    large = change(config, batch_size=8, out_dir=str(tmp_path / "a"))
    small = change(config, batch_size=2, grad_accum=4, out_dir=str(tmp_path / "b"))
    gradients, losses = [], []
    for run in (new_run(large), new_run(small)):
        kept = {}

        def note(*arguments, kept=kept, run=run, **keywords):
            kept.update({name: p.grad.clone() for name, p in run.learner.model.named_parameters()})
            return torch.zeros(())

        (optimizer,) = run.learner.optimizers
        optimizer.step = note
        losses.append(step(run).loss.item())
        gradients.append(kept)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_gradients_are_clipped_and_the_norm_reported(config):
    run = new_run(change(config, grad_clip=0.001, optimizer="adamw"))
    seen = []
    (optimizer,) = run.learner.optimizers
    parameters = list(run.learner.model.parameters())
    optimizer.step = lambda: seen.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
    outcome = step(run)
    assert seen == [pytest.approx(0.001, rel=1e-3)]
    assert outcome.gradient_norm > 0.1


def test_only_matrices_decay(config):
    run = new_run(change(config, optimizer="adamw"))
    (optimizer,) = run.learner.optimizers
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(run.learner.model.parameters()))


def test_muon_takes_the_matrices_of_the_blocks(config):
    run = new_run(change(config, optimizer="muon"))
    adamw, muon = run.learner.optimizers
    (group,) = muon.param_groups
    assert sorted(tuple(p.shape) for p in group["params"]) == 2 * [(16, 16)] + 2 * [(16, 64)] + 2 * [(48, 16)] + 2 * [
        (64, 16)
    ]
    rows_in_training = run.learner.model.rows_in_training
    assert [tuple(p.shape) for p in adamw.param_groups[0]["params"]] == [(rows_in_training, 16), (16, 16)]


LOSSES = [
    6.0033, 5.9210, 5.7712, 5.5935, 5.3711, 5.2009, 4.9287, 4.8384, 4.7287, 4.6733,
    4.5565, 4.5439, 4.4698, 4.5686, 4.6798, 4.6834, 4.3783, 4.7136, 4.5873, 4.4791,
]  # fmt: skip


def test_the_mathematics_is_what_it_was(config):
    """The mean loss of each of 20 steps, as literal numbers: no change of the code changes them unseen."""
    run = new_run(
        change(config, optimizer="muon", dropout=0.1, batch_size=8, grad_accum=2, learning_rate=0.02, max_steps=20)
    )
    losses = [float(step(run).loss) for _ in range(20)]
    assert losses == pytest.approx(LOSSES, abs=2e-4)


def test_a_text_that_is_too_short_is_refused_with_the_figures(config, tmp_path):
    (tmp_path / "short.txt").write_text("one two three four five six seven eight nine ten")
    data = dataclasses.replace(config.data, dataset=str(tmp_path / "short.txt"))
    with pytest.raises(
        UserError, match=r"8 tokens to train on \(and 3 to validate\).*--context_length 16 needs at least 17"
    ):
        train(change(config, data=data, vocab_size=50_257))


def test_compiling_falls_back_with_one_line(config, monkeypatch, capsys):
    def broken(*given):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: broken)
    assert train(change(config, compile="on")) == 0
    said = capsys.readouterr().out
    assert "torch.compile does not work here (RuntimeError: no compiler); training goes on without it\n" in said


def test_an_overflow_in_fp16_lets_no_optimizer_step(config):
    run = new_run(change(config, optimizer="muon"), torch.float16)
    before = {name: weight.clone() for name, weight in run.learner.model.state_dict().items()}
    hook = run.learner.model.blocks[0].mlp.up.weight.register_hook(lambda gradient: gradient * math.inf)
    scale = run.learner.scaler.get_scale()
    step(run)
    assert all(torch.equal(weight, before[name]) for name, weight in run.learner.model.state_dict().items())
    assert run.learner.scaler.get_scale() == scale / 2
    hook.remove()
    step(run)
    changed = [not torch.equal(weight, before[name]) for name, weight in run.learner.model.state_dict().items()]
    assert all(changed)
    assert all(weight.isfinite().all() for weight in run.learner.model.state_dict().values())


@pytest.mark.parametrize("seconds", [(1.0, 2.0, torch.bfloat16), (1.0, 1.2, torch.float32), (2.0, 1.0, torch.float32)])
def test_auto_takes_bf16_on_a_cpu_only_where_it_is_clearly_faster(seconds, monkeypatch):
    bf16, fp32, expected = seconds
    speeds = {torch.bfloat16: 1e9 / bf16, torch.float32: 1e9 / fp32}
    monkeypatch.setattr(device, "timed_flops", lambda on, dtype: speeds[dtype])
    assert device.pick_precision("auto", CPU) is expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_takes_fp16_on_a_card_that_only_emulates_bf16(has_bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert device.pick_precision("auto", torch.device("cuda")) is expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_changes_no_gradient(config, precision):
    gradients = []
    for on in (False, True):
        run = new_run(change(config, activation_checkpointing=on, dropout=0.1, precision=precision))
        torch.manual_seed(1)
        run.learner.model.loss(*run.batch(0))[0].backward()
        gradients.append({name: p.grad for name, p in run.learner.model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_activation_checkpointing_keeps_less(config):
    kept = []
    for on in (False, True):
        run = new_run(change(config, activation_checkpointing=on))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t):
            run.learner.model.hidden(run.batch(0)[0])
        kept.append(sum(saved))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"epochs": 1.0}, 96),  # never fewer than 1,536 tokens
        ({"epochs": 2000.0}, 512),  # 29 million tokens: 1,536 sqrt(29) of 16
        ({"epochs": 2000.0, "grad_accum": 4}, 128),
        ({"max_steps": 1000}, 128),  # 1,536^2 1,000 / 10^6 = 2,359 tokens
    ],
)
def test_the_batch_grows_with_the_run(config, changes, windows):
    length = {"max_steps": None, **changes}
    run = new_run(change(config, batch_size=None, **length))
    assert run.plan.batch_size == windows
    assert run.batch(0)[0].shape == (windows, 16)


def test_a_device_that_computes_otherwise_gets_no_run(config, monkeypatch):
    monkeypatch.setattr(check, "difference", lambda shape, rows, batch_size, *more: f"wrong with {batch_size} x {rows}")
    corpus = prepare(config.data, config.model.vocab_size)
    assemble(config, corpus, CPU, torch.float32)  # is not held against itself
    with pytest.raises(UserError, match=r"^meta does not compute what the CPU does \(wrong with 4 x \d+\)"):
        assemble(config, corpus, torch.device("meta"), torch.float32)
