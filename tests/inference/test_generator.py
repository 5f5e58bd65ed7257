"""Generation: cached and plain decoding agree, rows are independent, stopping, seeds, and texts beyond the context."""

import numpy as np
import pytest
import torch

from slm.config.model import ModelConfig
from slm.errors import UserError
from slm.inference.generator import Generator, Token
from slm.inference.sampling import Sampling
from slm.inference.torch_engine import TorchEngine
from slm.model.gpt import GPT

GREEDY = Sampling(temperature=0)


class PlainEngine:
    """Runs the whole network over each whole sequence for each token."""

    def __init__(self, model):
        self.model, self.context_length, self.rows = model, model.config.context_length, []

    @torch.no_grad()
    def last(self, rows):
        return np.stack([self.model(torch.tensor([row]))[0, -1].numpy() for row in rows])

    def prefill(self, prompts):
        self.rows += [prompt.tolist() for prompt in prompts]
        return self.last(self.rows[-len(prompts) :])

    def decode(self, ids):
        self.rows = [[*row, token] for row, token in zip(self.rows, ids.tolist(), strict=True)]
        return self.last(self.rows)

    def keep(self, rows):
        self.rows = [self.rows[row] for row in rows]


class Counter:
    """Says token n + 1 after token n, of 100; notes what it was asked to read."""

    context_length = 8

    def __init__(self):
        self.lengths, self.prefilled, self.decoded = [], [], []

    def logits(self, last):
        return np.eye(100, dtype=np.float32)[(np.array(last) + 1) % 100] * 50

    def prefill(self, prompts):
        self.prefilled += [prompt.tolist() for prompt in prompts]
        self.lengths += [len(prompt) for prompt in prompts]
        assert all(1 <= length <= self.context_length for length in self.lengths)
        return self.logits([prompt[-1] for prompt in prompts])

    def decode(self, ids):
        assert len(ids) == len(self.lengths)
        self.lengths = [length + 1 for length in self.lengths]
        assert max(self.lengths) <= self.context_length
        self.decoded.append(len(ids))
        return self.logits(ids)

    def keep(self, rows):
        self.lengths = [self.lengths[row] for row in rows]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(ModelConfig(vocab_size=61, context_length=16, n_layer=2, n_head=2, n_embd=32)).eval()


def rows(engine, prompts, *, stop_token=60, seed=3, **changes):
    """The ids that each prompt is continued with."""
    settings = {"max_length": 40, "sampling": GREEDY, **changes}
    random = [np.random.default_rng((seed, number)) for number in range(len(prompts))]
    found = [[] for _ in prompts]
    for step in Generator(engine, stop_token).generate(prompts, random=random, **settings):
        for row, token in zip(found, step, strict=True):
            if token is not None:
                row.append(token.id)
    return found


def row(engine, prompt, **changes):
    return rows(engine, [prompt], **changes)[0]


@pytest.mark.parametrize("prompt_length", [1, 5, 15, 16, 17, 40])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_k=20, top_p=0.9)])
def test_cached_and_uncached_decoding_give_the_same_tokens(model, prompt_length, sampling):
    prompt = [i * 7 % 60 for i in range(prompt_length)]
    cached = row(TorchEngine(model), prompt, sampling=sampling, stop_token=-1)
    assert cached == row(PlainEngine(model), prompt, sampling=sampling, stop_token=-1)
    assert len(cached) == 40


LENGTHS = [1, 3, 16, 7, 3, 12, 40]


@pytest.mark.parametrize("stop_token", [-1, 5])
def test_each_row_of_a_ragged_batch_is_the_one_that_it_is_alone(model, stop_token):
    """Over 40 tokens each row outgrows the context twice, at another time than the others; with 5 some end early."""
    prompts = [[(i * 7 + length) % 60 for i in range(length)] for length in LENGTHS]
    together = rows(TorchEngine(model), prompts, stop_token=stop_token)
    assert together == [row(TorchEngine(model), prompt, stop_token=stop_token) for prompt in prompts]
    assert together == rows(PlainEngine(model), prompts, stop_token=stop_token)
    assert {len(found) for found in together} == {40} or stop_token == 5


def test_samples_of_one_prompt_read_it_once():
    engine = Counter()
    assert rows(engine, [[1, 2], [4], [1, 2]], max_length=2) == [[3, 4], [5, 6], [3, 4]]
    assert engine.prefilled == [[1, 2], [4]]


def test_max_length_counts_the_tokens_added():
    assert row(Counter(), [3], max_length=4) == [4, 5, 6, 7]
    assert row(Counter(), [3, 9], max_length=1) == [10]


def test_the_stop_token_ends_a_text_and_is_not_shown():
    assert row(Counter(), [57]) == [58, 59]
    assert row(Counter(), [59]) == []


def test_a_text_may_be_ended_from_outside_after_any_token():
    seen = []

    def ends(number, token):
        seen.append((number, token))
        return token == 12 + 10 * number

    assert rows(Counter(), [[10], [20]], ends=ends) == [[11, 12], [21, 22]]
    assert rows(Counter(), [[10], [19]], ends=ends) == [[11, 12], [20, 21, 22]]
    assert seen[:4] == [(0, 11), (1, 21), (0, 12), (1, 22)]


def test_past_the_context_the_second_half_of_the_window_is_read_again():
    engine = Counter()
    assert row(engine, [0], max_length=14, stop_token=-1) == list(range(1, 15))
    assert engine.prefilled == [[0], [5, 6, 7, 8], [10, 11, 12, 13]]
    assert len(engine.decoded) == 13 - 2


def test_only_the_row_that_is_full_is_read_again():
    engine = Counter()
    assert rows(engine, [[0], [30, 31, 32, 33]], max_length=6, stop_token=-1) == [
        [1, 2, 3, 4, 5, 6],
        [34, 35, 36, 37, 38, 39],
    ]
    assert engine.prefilled == [[0], [30, 31, 32, 33], [35, 36, 37, 38]]
    assert engine.decoded == [2, 2, 2, 2, 1]


def test_of_a_long_prompt_the_last_tokens_are_read():
    engine = Counter()
    row(engine, list(range(30)), max_length=1)
    assert engine.prefilled == [list(range(22, 30))]


def test_no_work_is_done_for_a_token_that_is_not_shown():
    engine = Counter()
    row(engine, [0], max_length=1)
    assert engine.decoded == []


def test_rows_that_ended_cost_nothing():
    engine = Counter()
    assert rows(engine, [[57], [50], [58]], max_length=5) == [[58, 59], [51, 52, 53, 54, 55], [59]]
    assert engine.decoded == [3, 2, 1, 1]


def test_the_same_seed_writes_the_same_text(model):
    how = {"sampling": Sampling(), "stop_token": -1}
    first = row(TorchEngine(model), [1], seed=5, **how)
    assert row(TorchEngine(model), [1], seed=5, **how) == first
    assert row(TorchEngine(model), [1], seed=6, **how) != first


def test_a_sample_does_not_depend_on_its_neighbours(model):
    how = {"max_length": 30, "sampling": Sampling(), "seed": 5}
    together = rows(TorchEngine(model), [[1]] * 4, **how)
    assert together[0] == row(TorchEngine(model), [1], **how)
    assert len(set(map(tuple, together))) == 4


def test_a_repetition_penalty_counts_the_prompt_and_what_was_written():
    class Undecided(Counter):
        def logits(self, last):
            return np.tile(np.linspace(2, 1, 100, dtype=np.float32), (len(last), 1))

    how = {"sampling": Sampling(temperature=0, repetition_penalty=3.0), "max_length": 4}
    assert rows(Undecided(), [[9], [1]], **how) == [[0, 1, 2, 3], [0, 2, 3, 4]]
    assert rows(Undecided(), [[1]], max_length=4) == [[0, 0, 0, 0]]


def test_the_end_of_text_before_the_prompt_is_no_repetition():
    class Ending(Counter):
        def logits(self, last):
            return np.tile(np.eye(100, dtype=np.float32)[60] * 2 + np.eye(100, dtype=np.float32)[7], (len(last), 1))

    assert row(Ending(), [60, 1], sampling=Sampling(temperature=0, repetition_penalty=9.0)) == []


def test_probabilities_and_alternatives_are_the_models_own():
    class Fixed(Counter):
        def logits(self, last):
            return np.log(np.array([[0.1, 0.4, 0.2, 0.3]], dtype=np.float32))

    generator = Generator(Fixed(), stop_token=-1)
    (step,) = generator.generate(
        [[0]], max_length=1, sampling=GREEDY, random=[np.random.default_rng(0)], alternatives=2
    )
    (token,) = step
    assert (token.id, np.exp(token.logprob)) == (1, pytest.approx(0.4))
    assert [id for id, _ in token.alternatives] == [1, 3]
    assert np.exp([logprob for _, logprob in token.alternatives]) == pytest.approx([0.4, 0.3])
    (step,) = generator.generate([[0]], max_length=1, sampling=GREEDY, random=[np.random.default_rng(0)])
    assert step == [Token(1, None, ())]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(value):
    class Broken(Counter):
        def logits(self, last):
            return super().logits(last) + np.where(np.arange(100) == 7, np.float32(value), 0)

    with pytest.raises(UserError, match="computes what is no number"):
        row(Broken(), [3])


def test_of_two_texts_at_once_the_first_is_an_error_and_not_garbage(model):
    generator = Generator(TorchEngine(model), stop_token=-1)

    def begin(prompt):
        how = {"max_length": 9, "sampling": GREEDY, "random": [np.random.default_rng(0)]}
        return generator.generate([prompt], **how)

    first, second = begin([1, 2]), begin([3])
    next(first)
    next(second)
    with pytest.raises(UserError, match="finish one first, or load the model twice"):
        next(first)
    assert [step[0].id for step in second] == row(TorchEngine(model), [3], max_length=9, stop_token=-1)[1:]
