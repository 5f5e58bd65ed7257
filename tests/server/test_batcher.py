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
from slm.inference.continuation import Continuation
from slm.inference.generator import Batch
from slm.inference.onnx_engine import OnnxEngine
from slm.inference.sampling import Sampling
from slm.inference.text import TextModel
from slm.inference.torch_engine import TorchEngine
from slm.model.gpt import GPT
from slm.server import batcher as batcher_module
from slm.server.batcher import READ_AT_ONCE, TURN, Batcher, Failed, Full, Job, Text, scored
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
    batch, text = Batch(engine), continuation(ids, length)
    batch.add([text])
    while len(batch):
        batch.step()
    return text.ids[len(ids) :]


def continuation(ids, length, **how):
    return Continuation(list(ids), BYTES, length, GREEDY, np.random.default_rng(0), **how)


@pytest.mark.parametrize("name", ["torch", "onnx"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_joins_and_leaves_in_any_order(engines, name, data):
    engine = engines[name]
    prompts = st.lists(st.integers(0, 255), min_size=1, max_size=12)
    batch, begun = Batch(engine), {}
    for _ in range(data.draw(st.integers(1, 12))):
        for ids in data.draw(st.lists(prompts, max_size=3)):
            each = continuation(ids, data.draw(st.integers(1, 20)))
            begun[each] = (ids, each.max_length)
            batch.add([each])
        if begun and data.draw(st.booleans()):
            data.draw(st.sampled_from(list(begun))).ended = True
        batch.step()
    while len(batch):
        batch.step()
    for each, (ids, length) in begun.items():
        expected, found = alone(engine, ids, length), each.ids[len(ids) :]
        assert found == expected[: len(found)]
        assert each.ended


def job(*prompts, length=16, **how):
    return Job([Text(continuation(prompt.encode(), length), **how) for prompt in prompts])


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


def test_all_are_served_and_never_more_than_there_are_places():
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


def test_requests_take_turns():
    """A request for one text of one token beside one for more texts than there are places, each of many tokens."""
    model = alphabet()
    model.engine.gate = threading.Semaphore(0)

    async def main(batcher):
        big, small = job(*"aaaaaaaa", length=26 * 40), job("k", length=1)
        batcher.submit(big)
        model.engine.gate.release()
        while batcher.running < 4:
            await asyncio.sleep(0.001)
        batcher.submit(small)
        model.engine.gate.release(3)
        assert await written(small) == ["l"]
        batcher.cancel(big)

    run(model, main)


def test_a_request_that_has_no_place_waits_for_a_turn_and_no_longer():
    model = alphabet()

    class Endless(Alphabet):
        def logits(self, ids):
            return super().logits(np.where(np.asarray(ids) == ord("z"), ord("a") - 1, ids))

    model = TextModel(Endless(), BYTES, {})
    model.engine.gate = threading.Semaphore(0)

    async def main(batcher):
        first = [job("a", length=1000), job("b", length=1000), job("c", length=1000), job("d", length=1000)]
        for each in first:
            batcher.submit(each)
        model.engine.gate.release()
        while batcher.running < 4:
            await asyncio.sleep(0.001)
        last = job("k", length=1)
        batcher.submit(last)
        model.engine.gate.release(TURN + 2)
        assert await written(last) == ["l"]
        model.engine.gate.release(10_000)
        letters = "abcdefghijklmnopqrstuvwxyz" * 40
        assert [await written(each) for each in first] == [[letters[n + 1 : n + 1001]] for n in range(4)]

    run(model, main)


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_texts_that_left_their_place_go_on_where_they_were(engines, name, monkeypatch):
    monkeypatch.setattr(batcher_module, "TURN", 3)
    model = TextModel(engines[name], BYTES, {})
    draws = np.random.default_rng(1)
    prompts = [
        ["".join(chr(97 + c) for c in draws.integers(26, size=draws.integers(1, 12))) for _ in range(count)]
        for count in (9, 1, 5, 1, 1, 7, 2)
    ]
    expected = [[BYTES.decode(alone(engines[name], [*each.encode()], 30)) for each in texts] for texts in prompts]

    async def main(batcher):
        jobs = [job(*texts, length=30) for texts in prompts]
        for each in jobs:
            batcher.submit(each)
            await asyncio.sleep(0.005)
        return await asyncio.gather(*(written(each) for each in jobs))

    assert run(model, main) == expected


@pytest.mark.parametrize("what", ["prefill", "nan prefill", "scoring", "nan scoring"])
def test_a_request_that_fails_ends_alone(what):
    class Failing(Alphabet):
        def prefill(self, prompts):
            if what == "prefill" and any(prompt[0] == ord("!") for prompt in prompts):
                raise MemoryError("no room for this prompt")
            logits = super().prefill(prompts)
            if what == "nan prefill":
                logits[[prompt[0] == ord("!") for prompt in prompts]] = np.nan
            return logits

        def all_logits(self, ids):
            if what == "scoring":
                raise MemoryError("no room for these logits")
            return super().all_logits(ids) * (np.nan if what == "nan scoring" else 1)

    async def main(batcher):
        good, bad = job("a", "k", length=20), job("!", length=20)
        more = job("m", length=3)
        bad.texts[0].scored_from = 0 if "scoring" in what else None
        for each in (good, bad, more):
            batcher.submit(each)
        with pytest.raises(Failed):
            await written(bad)
        batcher.cancel(bad)
        assert await written(good) == ["bcdefghijklmnopqrstu", "lmnopqrstuvwxyz"]
        assert await written(more) == ["nop"]
        assert await written(job_after(batcher)) == ["cd"]

    def job_after(batcher):
        each = job("b", length=2)
        batcher.submit(each)
        return each

    run(TextModel(Failing(), BYTES, {}), main)
