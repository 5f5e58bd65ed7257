"""Generation: cached and plain decoding agree, stopping, seeds, and texts longer than the context."""

import numpy as np
import pytest
import torch

from slm.config import ModelConfig
from slm.inference.generator import generate
from slm.inference.sampling import Sampling
from slm.inference.torch_engine import TorchEngine
from slm.model.gpt import GPT

GREEDY = Sampling(temperature=0)


class PlainEngine:
    """Runs the whole network over the whole window for each token."""

    def __init__(self, model):
        self.model, self.context_length = model, model.config.context_length

    @torch.no_grad()
    def prefill(self, ids):
        self.ids = ids
        return self.model(torch.from_numpy(ids))[:, -1].numpy()

    def decode(self, ids):
        return self.prefill(np.column_stack([self.ids, ids]))


class Counter:
    """Says token n + 1 after token n; notes what it was asked to read."""

    context_length = 8

    def __init__(self):
        self.prefilled, self.decoded = [], 0

    def logits(self, last):
        return np.eye(100, dtype=np.float32)[(last + 1) % 100] * 50

    def prefill(self, ids):
        assert 1 <= ids.shape[1] <= self.context_length
        self.length = ids.shape[1]
        self.prefilled.append(ids[0].tolist())
        return self.logits(ids[:, -1])

    def decode(self, ids):
        self.length += 1
        assert self.length <= self.context_length
        self.decoded += 1
        return self.logits(ids)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(ModelConfig(vocab_size=61, context_length=16, n_layer=2, n_head=2, n_embd=32)).eval()


def tokens(engine, prompt, **changes):
    settings = {"max_length": 40, "stop_token": 60, "sampling": GREEDY, **changes}
    return [row[0] for row in generate(engine, prompt, **settings)]


@pytest.mark.parametrize("prompt_length", [1, 5, 15, 16, 17, 40])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_k=20, top_p=0.9)])
def test_cached_and_uncached_decoding_give_the_same_tokens(model, prompt_length, sampling):
    prompt = [i * 7 % 60 for i in range(prompt_length)]
    settings = {"sampling": sampling, "seed": 3, "stop_token": -1}
    cached = tokens(TorchEngine(model), prompt, **settings)
    assert cached == tokens(PlainEngine(model), prompt, **settings)
    assert len(cached) == 40


def test_max_length_counts_the_tokens_added():
    assert tokens(Counter(), [3], max_length=4) == [4, 5, 6, 7]
    assert tokens(Counter(), [3, 9], max_length=1) == [10]


def test_the_stop_token_ends_a_text_and_is_not_shown():
    assert tokens(Counter(), [57]) == [58, 59]
    assert tokens(Counter(), [59]) == []


def test_past_the_context_the_second_half_of_the_window_is_read_again():
    engine = Counter()
    assert tokens(engine, [0], max_length=14, stop_token=-1) == list(range(1, 15))
    assert engine.prefilled == [[0], [5, 6, 7, 8], [10, 11, 12, 13]]
    assert engine.decoded == 13 - 2


def test_of_a_long_prompt_the_last_tokens_are_read():
    engine = Counter()
    tokens(engine, list(range(30)), max_length=1)
    assert engine.prefilled == [list(range(22, 30))]


def test_no_work_is_done_for_a_token_that_is_not_shown():
    engine = Counter()
    tokens(engine, [0], max_length=1)
    assert engine.decoded == 0


def test_the_same_seed_writes_the_same_text(model):
    how = {"sampling": Sampling(), "stop_token": -1}
    first = tokens(TorchEngine(model), [1], seed=5, **how)
    assert tokens(TorchEngine(model), [1], seed=5, **how) == first
    assert tokens(TorchEngine(model), [1], seed=6, **how) != first


def test_a_sample_does_not_depend_on_its_neighbours(model):
    how = {"max_length": 30, "stop_token": 60, "sampling": Sampling(), "seed": 5}
    alone = list(generate(TorchEngine(model), [1], num_samples=1, **how))
    together = list(generate(TorchEngine(model), [1], num_samples=4, **how))
    first = [row[0] for row in together if row[0] is not None]
    assert first == [row[0] for row in alone]
    assert len({tuple(row[n] for row in together) for n in range(4)}) == 4


def test_samples_end_one_by_one():
    class Staggered(Counter):
        def logits(self, last):
            logits = super().logits(last)
            return np.where(np.arange(len(logits))[:, None] == 1, logits, np.eye(100, dtype=np.float32)[60] * 50)

    rows = list(generate(Staggered(), [57], max_length=9, stop_token=60, sampling=GREEDY, num_samples=2))
    assert rows == [[None, 58], [None, 59]]
