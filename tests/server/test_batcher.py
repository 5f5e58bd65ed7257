"""Continuous batching: what a text says does not depend on who joins, leaves or goes away, in both engines."""

import asyncio
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.checkpoint.file import Checkpoint
from slm.config.model import ModelConfig
from slm.export.command import export
from slm.inference.generator import Batch, Continuation, Generator
from slm.inference.onnx_engine import OnnxEngine
from slm.inference.sampling import Sampling
from slm.inference.text import Growing, TextModel
from slm.inference.torch_engine import TorchEngine
from slm.model.gpt import GPT
from slm.server.batcher import READ_AT_ONCE, Batcher, Full, Job, Text, scored
from tests.server.conftest import BYTES, Alphabet, alphabet

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """A network that says something else after each sequence, in both engines."""
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=257, context_length=8, n_layer=2, n_head=2, n_embd=8)
    weights = {name: 10 * weight for name, weight in GPT(shape).state_dict().items()}
    loaded = Checkpoint(shape, weights, BYTES, {})
    base = tmp_path_factory.mktemp("toy") / "m"
    export(loaded, "onnx", base)
    return {"torch": TorchEngine(loaded.model()), "onnx": OnnxEngine(base.with_name("m.onnx"), threads=1)}


def alone(engine, ids, length):
    """The ids that the sequence is continued with, by itself."""
    random = [np.random.default_rng(0)]
    steps = Generator(engine, BYTES.end_of_text).generate([ids], max_length=length, sampling=GREEDY, random=random)
    return [step[0].id for step in steps]


def continuation(ids, length, **how):
    return Continuation(list(ids), length, GREEDY, np.random.default_rng(0), **how)


@pytest.mark.parametrize("name", ["torch", "onnx"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_joins_and_leaves_in_any_order(engines, name, data):
    engine = engines[name]
    prompts = st.lists(st.integers(0, 255), min_size=1, max_size=12)
    batch, begun, found = Batch(engine, BYTES.end_of_text), {}, {}
    for _ in range(data.draw(st.integers(1, 12))):
        for ids in data.draw(st.lists(prompts, max_size=3)):
            each = continuation(ids, data.draw(st.integers(1, 20)))
            begun[each], found[each] = (ids, each.max_length), []
            batch.add([each])
        if begun and data.draw(st.booleans()):
            data.draw(st.sampled_from(list(begun))).ended = True
        for each, token in batch.step():
            found[each] += [token.id] if token else []
    while len(batch):
        for each, token in batch.step():
            found[each] += [token.id] if token else []
    for each, (ids, length) in begun.items():
        expected = alone(engine, ids, length)
        assert found[each] == expected[: len(found[each])]
        assert each.ended


def job(*prompts, length=16, **how):
    texts = []
    for prompt in prompts:
        growing = Growing(())
        ends = lambda token, growing=growing: growing.add(BYTES.tokens[token])  # noqa: E731
        texts.append(Text(continuation(prompt.encode(), length, ends=ends), growing, **how))
    return Job(texts)


async def written(each):
    """The texts of a job."""
    texts = [""] * len(each.texts)
    async for events in each.events():
        for event in events:
            texts[event.number] += event.text
    return texts


def run(model, main, **bounds):
    """What `main(batcher)` returns, with a batcher that runs meanwhile."""

    async def running():
        batcher = Batcher(model, **{"max_batch": 4, "max_queue": 100, **bounds})
        batcher.start()
        try:
            return await asyncio.wait_for(main(batcher), 30)
        finally:
            if getattr(model.engine, "gate", None):
                model.engine.gate.release(10_000)
            batcher.close()

    return asyncio.run(running())


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_many_requests_some_of_which_are_given_up(engines, name):
    model = TextModel(engines[name], BYTES, {})
    draws = np.random.default_rng(0)
    prompts = ["".join(chr(97 + c) for c in draws.integers(26, size=draws.integers(1, 12))) for _ in range(60)]
    expected = [BYTES.decode(alone(engines[name], [*prompt.encode()], 16)) for prompt in prompts]

    async def main(batcher):
        async def one(number):
            await asyncio.sleep(float(draws.random()) / 20)
            each = job(prompts[number])
            batcher.submit(each)
            if number % 3 == 0:
                await asyncio.sleep(float(draws.random()) / 20)
                batcher.cancel(each)
                return expected[number]
            return (await written(each))[0]

        return await asyncio.gather(*(one(number) for number in range(60)))

    assert run(model, main) == expected


def test_first_come_first_served_and_never_more_than_there_are_places():
    model = alphabet()

    async def main(batcher):
        jobs = [job("a", "k", length=3), job("b", "l", "c", "m", length=2), job("d", length=1)]
        for each in jobs:
            batcher.submit(each)
        return [await written(each) for each in jobs]

    assert run(model, main, max_batch=3) == [["bcd", "lmn"], ["cd", "mn", "de", "no"], ["e"]]
    assert max(model.engine.decoded) <= 3


def test_a_queue_that_is_full():
    model = alphabet()
    model.engine.gate = threading.Semaphore(0)

    async def main(batcher):
        first = job("a", "b", "c", "d", "e", length=2)  # of which one must wait
        batcher.submit(first)
        with pytest.raises(Full):
            batcher.submit(job("x"))
        assert batcher.waiting == 1
        batcher.cancel(first)
        assert batcher.waiting == 0
        model.engine.gate.release(10_000)
        while batcher.running:
            await asyncio.sleep(0.001)
        last = job("v")
        batcher.submit(last)
        assert await written(last) == ["wxyz"]

    run(model, main, max_queue=1)


def test_long_prompts_are_read_a_few_at_a_time():
    read = []

    class Long(Alphabet):
        context_length = READ_AT_ONCE // 2

        def prefill(self, prompts):
            read.append(len(prompts))
            return super().prefill(prompts)

    async def main(batcher):
        jobs = [job(chr(97 + number) * 1000, length=1) for number in range(5)]
        for each in jobs:
            batcher.submit(each)
        return [await written(each) for each in jobs]

    assert run(TextModel(Long(), BYTES, {}), main) == [["b"], ["c"], ["d"], ["e"], ["f"]]
    assert sum(read) == 5
    assert max(read) <= 2


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_scores_are_the_models_own(engines, name):
    ids = [5, 200, 31, 7]
    tokens = scored(engines[name], ids, 2)
    assert [token.id for token in tokens] == ids
    assert tokens[0].logprob is None
    logits = engines["torch"].all_logits(np.array([ids]))[0].astype(np.float64)
    believed = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for place, token in enumerate(tokens[1:]):
        assert token.logprob == pytest.approx(believed[place, token.id], abs=1e-3)
        assert [id for id, _ in token.alternatives] == np.argsort(-believed[place])[:2].tolist()
