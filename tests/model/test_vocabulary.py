"""A model with rows for the tokens of a text only, against the same model with all of them."""

import numpy as np
import pytest
import torch

from slm.config.model import ModelConfig
from slm.model.gpt import GPT
from slm.model.vocabulary import Rows

USED = np.arange(0, 300, 3)


def rows(used, vocab_size):
    in_use = np.zeros(vocab_size, dtype=bool)
    in_use[used] = True
    return Rows(in_use)


def pair(used=USED, vocab_size=300):
    """A model with few rows, and one with all that has the same weights."""
    shape = ModelConfig(vocab_size=vocab_size, context_length=16, n_layer=2, n_head=2, n_embd=32, bias=False)
    torch.manual_seed(0)
    few, full = GPT(shape, rows(used, vocab_size)), GPT(shape)
    full.load_state_dict(few.widened(few.state_dict()))
    return few, full


def batch():
    """Inputs that are in use, and targets of which one is not and one does not count."""
    ids = torch.from_numpy(USED[np.random.default_rng(0).integers(100, size=(4, 17))])
    targets = ids[:, 1:].clone()
    targets[0, 0], targets[1, 1] = 299, -1
    return ids[:, :-1], targets


def test_each_token_has_its_row():
    few = rows([1, 4], 200)
    assert (few.count, few.shared) == (64, 200 - 63)
    assert few.of_token[:6].tolist() == [2, 0, 3, 4, 1, 5]
    assert few.of_token[62:].unique().tolist() == [62, 63]
    assert few.of_token[63:].tolist() == [63] * 137


@pytest.mark.parametrize(
    ("used", "vocab_size", "count", "shared"),
    [
        (range(300), 300, 300, 0),  # all are in use
        (range(299), 300, 300, 1),
        (range(100), 110, 110, 1),  # too few are unused to come to a multiple of 64
        ([0], 50_257, 64, 50_194),
    ],
)
def test_number_of_rows(used, vocab_size, count, shared):
    few = rows(list(used), vocab_size)
    assert (few.count, few.shared) == (count, shared)
    assert few.of_token.max() == count - 1
    embedding = torch.arange(count)[:, None]
    assert torch.equal(few.narrow(few.widen(embedding)), embedding)


def test_loss_and_accuracy_are_those_of_all_rows():
    few, full = pair()
    for model in (few, full):
        model.final_norm.weight.data.mul_(20)  # sure guesses
    for ids, targets in (batch(), (batch()[0], full(batch()[0]).argmax(-1))):
        (loss, correct), (expected, expected_correct) = few.loss(ids, targets), full.loss(ids, targets)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert correct.item() == expected_correct.item() or (targets % 3 != 0).any()
    assert torch.allclose(few(ids), full(ids))


def test_gradients_are_those_of_all_rows():
    few, full = pair()
    for model in (few, full):
        model.loss(*batch())[0].backward()
    expected = dict(full.named_parameters())
    for name, parameter in few.named_parameters():
        theirs = expected[name].grad
        if name == "token_embedding.weight":  # the shared row has the sum of its tokens' gradients
            theirs = torch.zeros_like(parameter).index_add_(0, few.row_of_token, theirs)
        # fp32 sums in another order: 3e-6 was seen on a CPU with AMX
        assert (parameter.grad - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name


def test_training_keeps_unused_tokens_equal():
    """So many steps of AdamW on all rows end where those on few do, unused tokens being never a target."""
    few, full = pair()
    ids, targets = batch()
    targets[0, 0] = 0
    for model in (few, full):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            model.loss(ids, targets)[0].backward()
            optimizer.step()
    expected = full.state_dict()
    for name, weight in few.widened(few.state_dict()).items():
        assert torch.allclose(weight, expected[name], atol=2e-5), name
    unused = expected["token_embedding.weight"][few.row_of_token == few.rows.count - 1]
    assert len(unused) > 100
    assert torch.allclose(unused, unused[:1], atol=1e-7)
    assert few.loss(ids, targets)[0].item() == pytest.approx(full.loss(ids, targets)[0].item(), rel=1e-5)


def test_weights_come_back():
    few, _ = pair()
    other = GPT(few.config, few.rows)
    other.load_state_dict(other.narrowed(few.widened(few.state_dict())))
    assert all(torch.equal(a, b) for a, b in zip(few.parameters(), other.parameters(), strict=True))
