"""Generation: cached and plain decoding agree, rows are independent, stopping, seeds, and texts beyond the context."""

import numpy as np
import pytest
import torch

from slm.config.model import ModelConfig
from slm.errors import UserError
from slm.inference.continuation import Continuation, Piece, Token
from slm.inference.generator import Batch
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


class Letters:
    """A tokenizer of 100 tokens, of which one, or with -1 none, ends a text."""

    def __init__(self, end_of_text):
        self.tokens, self.end_of_text = [b"%c" % (32 + id) for id in range(100)], end_of_text
        self.begin_with_space = np.array([token.startswith(b" ") for token in self.tokens])


def continuations(prompts, *, stop_token=60, seed=3, max_length=40, sampling=GREEDY, **changes):
    return [
        Continuation(
            list(prompt), Letters(stop_token), max_length, sampling, np.random.default_rng((seed, number)), **changes
        )
        for number, prompt in enumerate(prompts)
    ]


def rows(engine, prompts, **changes):
    """The ids that each prompt is continued with."""
    batch, texts = Batch(engine), continuations(prompts, **changes)
    batch.add(texts)
    while len(batch):
        batch.step()
    for text in texts:
        text.take()
    return [text.ids[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


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
    batch = Batch(Counter())
    first, second = texts = continuations([[10], [20]], max_length=4)
    batch.add(texts)
    assert batch.step() == batch.step() == texts
    first.ended = True
    assert batch.step() == [second]
    assert (first.ids, second.ids) == ([10, 11, 12], [20, 21, 22, 23])
    assert first.finish_reason is None
    assert batch.step() == [second]
    assert (len(batch), second.finish_reason) == (0, "length")


def test_a_stop_string_ends_a_text_with_the_token_that_completes_it():
    assert rows(Counter(), [[10], [30]], stop=("-.",)) == [[11, 12, 13, 14], list(range(31, 60))]


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

    def only(**how):
        batch, (text,) = Batch(Fixed()), continuations([[0]], max_length=1, stop_token=-1, **how)
        batch.add([text])
        batch.step()
        return text.take()

    ((shown, token),) = only(alternatives=2)
    assert shown == "!"
    assert (token.id, np.exp(token.logprob)) == (1, pytest.approx(0.4))
    assert [id for id, _ in token.alternatives] == [1, 3]
    assert np.exp([logprob for _, logprob in token.alternatives]) == pytest.approx([0.4, 0.3])
    assert only() == [Piece("!", Token(1, None, ()))]


def test_the_end_of_text_is_reported_with_its_probability():
    batch, (text,) = Batch(Counter()), continuations([[58]], alternatives=1)
    batch.add([text])
    while len(batch):
        batch.step()
    (shown, token), (nothing, end) = text.take()
    assert (shown, token.id, nothing, end.id) == ("[", 59, "", 60)
    assert end.logprob == pytest.approx(0, abs=1e-5)
    assert end.alternatives == ((60, end.logprob),)
    assert (text.ids, text.finish_reason) == ([58, 59], "stop")


def test_after_a_space_the_first_token_begins_with_one_and_is_shown_without_it():
    class Undecided(Counter):
        def logits(self, last):
            return np.tile(np.linspace(1, 2, 100, dtype=np.float32), (len(last), 1))

    how = {"max_length": 2, "stop_token": 3, "after_space": True, "alternatives": 1}
    batch, (text,) = Batch(Undecided()), continuations([[5]], **how)
    text.tokenizer.tokens[7], text.tokenizer.begin_with_space[7] = b" cat", True
    batch.add([text])
    while len(batch):
        batch.step()
    first, second = text.take()
    assert [first.text, second.text] == ["cat", "\ufffd"]
    assert first.token.alternatives[0][0] == 99  # what the model itself believes


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(value):
    class Broken(Counter):
        def logits(self, last):
            return super().logits(last) + np.where(np.arange(100) == 7, np.float32(value), 0)

    with pytest.raises(UserError, match="computes NaN"):
        row(Broken(), [3])


def test_one_text_that_fails_leaves_the_others():
    class Broken(Counter):
        def logits(self, last):
            return np.where(np.array(last)[:, None] == 7, np.float32(np.nan), super().logits(last))

    batch, texts = Batch(Broken()), continuations([[5], [57]])
    batch.add(texts)
    while len(batch):
        batch.step()
    with pytest.raises(UserError, match="computes NaN"):
        texts[0].take()
    assert [piece.token.id for piece in texts[1].take()] == [58, 59, 60]


def test_where_the_engine_fails_all_texts_do_and_the_batch_goes_on_with_others():
    class Fails(Counter):
        def decode(self, ids):
            if 13 in ids:
                raise MemoryError("too much")
            return super().decode(ids)

    batch, (first, second) = Batch(Fails()), continuations([[11], [50]], max_length=5)
    batch.add([first, second])
    while len(batch):
        batch.step()
    for text in (first, second):
        with pytest.raises(MemoryError, match="too much"):
            text.take()
    (other,) = continuations([[56]])
    batch.add([other])
    while len(batch):
        batch.step()
    assert other.ids == [56, 57, 58, 59]
