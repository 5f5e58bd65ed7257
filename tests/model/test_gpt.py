"""The network: shape, initial state, causality, attention paths, cache."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from slm.config.fields import build
from slm.config.model import PRESETS, ModelConfig
from slm.model.gpt import GPT, causal_products

TOY = ModelConfig(vocab_size=97, context_length=16, n_layer=2, n_head=2, n_embd=32)


def toy(**changes: object) -> GPT:
    torch.manual_seed(0)
    return GPT(dataclasses.replace(TOY, **changes)).eval()


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(config).parameters())


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("small", 29_995_392), ("gpt2", 124_439_808), ("gpt2-medium", 354_823_168)],
)
def test_presets_have_the_published_number_of_parameters(preset, expected):
    assert parameters(build(ModelConfig, PRESETS[preset])) == expected


def test_a_vocabulary_of_10000_halves_the_default_model():
    assert parameters(ModelConfig(vocab_size=10_000)) == 14_536_704


def test_without_biases_only_matrices_and_norm_weights_remain():
    model = toy(bias=False)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 97)


def test_initial_weights_follow_gpt2():
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=1000, n_layer=8))
    std = {name: parameter.std().item() for name, parameter in model.named_parameters()}
    assert std["token_embedding.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["position_embedding.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["blocks.3.attention.qkv.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["blocks.3.attention.projection.weight"] == pytest.approx(0.02 / 4, rel=0.05)  # sqrt(2 x 8 layers) = 4
    assert std["blocks.3.mlp.down.weight"] == pytest.approx(0.02 / 4, rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        if "norm.weight" in name:
            assert (parameter == 1).all(), name


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_loss_at_init_is_that_of_guessing(preset):
    torch.manual_seed(0)
    config = build(ModelConfig, PRESETS[preset])
    model = GPT(config)
    ids = torch.randint(config.vocab_size, (2, 65))
    loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
    assert loss.item() / 128 == pytest.approx(math.log(config.vocab_size), abs=0.1)


def test_nothing_leaks_from_the_future():
    model = toy()
    ids = torch.randint(97, (3, 16))
    changed = ids.clone()
    changed[:, 9:] = torch.randint(97, (3, 7))
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-6)
    assert (before[:, 9:] - after[:, 9:]).abs().max() > 1e-3


def test_every_earlier_token_is_seen():
    model = toy()
    ids = torch.randint(97, (1, 16))
    for position in range(16):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 1) % 97
        assert (model(ids)[0, -1] - model(changed)[0, -1]).abs().max() > 1e-6, position


def test_flash_and_math_attention_agree():
    flash, math_ = toy(), toy(attention="math")
    math_.load_state_dict(flash.state_dict())
    ids = torch.randint(97, (4, 16))
    torch.testing.assert_close(flash(ids), math_(ids), rtol=0, atol=1e-5)
    for model in (flash, math_):
        model.loss(ids[:, :-1], ids[:, 1:])[0].backward()
    for (name, a), b in zip(flash.named_parameters(), math_.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_loss_is_that_of_the_logits():
    model = toy()
    ids = torch.randint(97, (4, 17))
    loss, correct = model.loss(ids[:, :-1], ids[:, 1:])
    logits = model(ids[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert correct.item() == (logits.argmax(-1) == ids[:, 1:]).sum().item()


@pytest.mark.parametrize("cuts", [[16], [1] * 16, [5, 1, 7, 3], [15, 1]])
def test_reading_in_parts_with_a_cache_gives_the_same_logits(cuts):
    model = toy()
    ids = torch.randint(97, (3, 16))
    cache = model.new_cache(3)
    with torch.no_grad():
        parts = torch.cat([model(part, cache) for part in ids.split(cuts, dim=1)], dim=1)
        torch.testing.assert_close(parts, model(ids), rtol=0, atol=1e-5)
    assert cache.lengths == [16, 16, 16]


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(IndexError):
        toy()(torch.zeros(1, 17, dtype=torch.long))


def test_dropout_acts_in_training_only():
    model = toy(dropout=0.5)
    ids = torch.randint(97, (1, 16))
    torch.testing.assert_close(model(ids), model(ids))
    model.train()
    assert (model(ids) - model(ids)).abs().max() > 1e-3


@pytest.mark.parametrize("T", [1, 2, 17, 512])
def test_attention_by_products_is_torchs(T):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, T, 8, requires_grad=True) for _ in range(3))
    ours, theirs = causal_products(q, k, v, 0.0), F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(ours, theirs, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), (q, k, v)),
        torch.autograd.grad(theirs.square().sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-4)


def test_bf16_on_a_cpu_stays_near():
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=50, context_length=64, n_layer=2, n_head=2, n_embd=32))
    ids = torch.randint(50, (3, 64))
    exact = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(ids).float(), exact, atol=0.02)
