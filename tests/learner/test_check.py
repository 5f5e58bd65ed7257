"""A device is compared with the CPU before it is trusted."""

import math

import pytest
import torch

from slm.config.model import ModelConfig
from slm.errors import UserError
from slm.learner import check
from slm.learner.check import compute, difference
from slm.learner.workers import Workers

CPU = torch.device("cpu")
SHAPE = ModelConfig(vocab_size=300, context_length=64, n_layer=2, n_head=2, n_embd=32, dropout=0.1)


def tried(there, batch_size=8, dtype=torch.float32):
    return difference(SHAPE, 300, batch_size, CPU, dtype, there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [1, 8, 513])
def test_the_cpu_computes_what_the_cpu_does(dtype, batch_size):
    assert tried(compute, batch_size, dtype) == ""


def wrong_after_another_batch_size(factor, limit):
    """As in pytorch#177116: the gradients of a large batch are wrong after a batch of another size."""
    sizes = []

    def there(model, ids, *more):
        found = compute(model, ids, *more)
        sizes.append(len(ids))
        if ids.numel() > limit and sizes[-2:-1] not in ([], [len(ids)]):
            found.gradients["blocks.0.mlp.up.weight"] *= factor
        return found

    return there


def test_large_batches_after_others():
    said = tried(wrong_after_another_batch_size(1e3, 400))
    assert said.startswith("the gradient of blocks.0.mlp.up.weight is off by ")
    assert said.endswith(", in a batch of 8 x 64 tokens")
    assert tried(wrong_after_another_batch_size(1e3, 8 * 64)) == ""
    assert tried(wrong_after_another_batch_size(1e3, 1 << 15), batch_size=513).endswith("513 x 64 tokens")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found._replace(loss=1.2 * found.loss), "the loss is 6."),
        (lambda found: found._replace(loss=math.nan), "the loss is nan instead of 5."),
        (
            lambda found: found.gradients["token_embedding.weight"].zero_(),
            "is off by 99%: its norm is 0, not ",
        ),
        (
            lambda found: found.gradients["blocks.0.attention.qkv.bias"].mul_(-1),
            "qkv.bias is off by 1",
        ),
        (lambda found: found.gradients["final_norm.weight"].fill_(math.nan), "is off by nan%: its norm is nan, not"),
    ],
)
def test_whatever_is_wrong_is_seen_in_each_precision(change, said):
    def there(*call):
        found = compute(*call)
        new = change(found)
        return new if isinstance(new, check.Computed) else found

    for dtype in (torch.float32, torch.bfloat16):
        assert said in tried(there, dtype=dtype)


def test_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(check, "difference", lambda *all: "the loss is 7 instead of 5, in a batch of 8 x 64 tokens")
    with pytest.raises(UserError) as raised:
        check.check_device(SHAPE, 300, 8, torch.device("mps"), torch.float32, Workers())
    assert str(raised.value) == (
        "mps does not compute what the CPU does (the loss is 7 instead of 5, in a batch of 8 x 64 tokens), and what "
        "is learned there cannot be trusted: take a smaller --batch_size, --precision fp32, another version of PyTorch "
        f"than {torch.__version__}, or --device cpu"
    )


def test_every_process_knows_of_a_fault_in_one():
    class Another(Workers):
        def max(self, *values):
            return [1.0]

    with pytest.raises(UserError, match=r"\(in another process\)"):
        check.check_device(SHAPE, 300, 8, CPU, torch.float32, Another())


def test_nothing_is_drawn_from_the_random_numbers_of_the_run():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    assert tried(compute) == ""
    assert torch.equal(torch.rand(2), expected)
