"""What the device computes, against float64 or fp32 on the CPU."""

import contextlib
import gc
import math

import pytest
import torch
import torch.nn.functional as F

from slm.config.model import ModelConfig
from slm.data.corpus import prepare
from slm.data.tokenizer import gpt2
from slm.device import autocast
from slm.evaluation.measure import evaluate
from slm.inference.torch_engine import TorchEngine
from slm.learner.check import difference
from slm.learner.learner import Learner
from slm.learner.optim import Muon, make_optimizers
from slm.model import loss as head
from slm.model.gpt import GPT
from slm.model.vocabulary import Rows

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
PRECISIONS = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # and the error of a gradient they have


def learner(device, dtype=torch.float32, vocabulary=512, **settings):
    """A toy model's on the device, of which the text uses a half of the tokens, and a batch of 8 x 64 tokens."""
    torch.manual_seed(0)
    used = torch.arange(vocabulary) < vocabulary // 2
    shape = ModelConfig(vocab_size=vocabulary, context_length=64, n_layer=2, n_head=4, n_embd=64)
    model = GPT(shape, Rows(used.numpy()))
    with torch.no_grad():  # larger than at the start, so that there is something to be wrong about
        for weight in model.parameters():
            weight.mul_(3 if weight.dim() == 2 else 1)
    ids = torch.randint(vocabulary // 2, (8, 65))
    model.to(device)
    optimizers = make_optimizers(model, "muon", betas=(0.9, 0.95), weight_decay=0.1, dtype=dtype)
    batch = (ids[:, :-1].to(device), ids[:, 1:].to(device))
    return Learner(model, optimizers, device=device, dtype=dtype, **{"compile": "off", **settings}), batch


def gradients(subject, batch):
    """The loss and the whole gradient of `batch`, in fp32 on the CPU."""
    with autocast(subject.device, subject.dtype):
        loss, _ = subject.model.loss(*batch)
    (loss / batch[0].numel()).backward()
    whole = torch.cat([weight.grad.flatten().float().cpu() for weight in subject.model.parameters()])
    subject.model.zero_grad()
    return loss.item() / batch[0].numel(), whole


def error(found, expected):
    """The length of the difference over that of what is expected."""
    found, expected = (tensor.detach().cpu().double() for tensor in (found, expected))  # Apple's GPU has no fp64
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_loss_and_gradients_in_each_precision_against_fp32_on_the_cpu(device, dtype):
    expected_loss, expected = gradients(*learner(CPU))
    loss, found = gradients(*learner(device, dtype))
    assert loss == pytest.approx(expected_loss, rel=PRECISIONS[dtype])
    assert error(found, expected) < 3 * PRECISIONS[dtype]


def test_the_whole_loss_against_float64(device):
    subject, (ids, targets) = learner(device)
    _, found = gradients(subject, (ids, targets))
    exact = learner(CPU)[0].model.double()
    logits = F.linear(exact.hidden(ids.cpu()), exact.rows.widen(exact.token_embedding.weight))
    F.cross_entropy(logits.flatten(0, 1), targets.cpu().flatten()).backward()
    assert error(found, torch.cat([weight.grad.flatten() for weight in exact.parameters()])) < 1e-4


@pytest.mark.parametrize("shared", [1, 100])
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_head_against_float64(device, dtype, kernel, shared, monkeypatch):
    """In three chunks with a ragged end, of a number of rows that is padded."""
    if kernel and device.type != "cuda":
        pytest.skip("the kernel is for CUDA alone")
    if kernel:
        assert head.cuda_kernel(), "the kernel for CUDA could not be built"
    else:
        monkeypatch.setattr(head, "cuda_kernel", lambda: None)
    monkeypatch.setattr(head, "chunk_elements", lambda device: 256 * 320)
    torch.manual_seed(0)
    hidden, weight = torch.randn(700, 64), 0.2 * torch.randn(310, 64)
    targets = torch.randint(-1, 310, (700,))
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    logits = F.linear(*exact)
    several = torch.cat([logits, logits[:, -1:].expand(-1, shared - 1)], 1)
    expected = F.cross_entropy(several, targets, ignore_index=-1, reduction="sum")
    expected.backward()
    given = (hidden.to(device), weight.to(device, dtype), targets.to(device))
    loss, correct, *found = head._in_chunks(*given, shared, True)
    assert loss.item() == pytest.approx(expected.item(), rel=PRECISIONS[dtype])
    right = ((logits.argmax(1) == targets) & ((targets < 309) | (shared == 1))).sum().item()
    assert correct.item() == pytest.approx(right, abs=0 if dtype == torch.float32 else 4)
    for ours, leaf in zip(found, exact, strict=True):
        assert error(ours, leaf.grad) < PRECISIONS[dtype]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_muon_against_float64(device, dtype, limit):
    torch.manual_seed(0)
    starts = [torch.randn(shape) for shape in ((64, 64), (192, 64), (64, 256), (256, 64))]
    steps = [[torch.randn_like(start) for start in starts] for _ in range(3)]
    results = []
    for place, kind, products in ((device, torch.float32, dtype), (CPU, torch.float64, torch.float64)):
        weights = [torch.nn.Parameter(start.to(place, kind, copy=True)) for start in starts]
        optimizer = Muon(weights, lr=0.5, dtype=products)
        for step in steps:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.to(place, kind)
            optimizer.step()
        pairs = zip(weights, starts, strict=True)
        results.append([weight.detach().cpu().double() - start.double() for weight, start in pairs])
    for found, expected in zip(*results, strict=True):
        assert error(found, expected) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_equals_eager(device, dtype, capsys):
    """Not only in the first step."""
    if device.type == "cpu" and dtype == torch.float16:
        pytest.skip("a CPU compiles for half a minute: once is enough to try the test")
    courses = []
    for compile in ("on", "off"):
        subject, batch = learner(device, dtype, compile=compile)
        courses.append([subject.step([batch], rate=0.01, seed=0).loss.item() for _ in range(4)])
        assert (subject.model.compiled_block is None) == (compile == "off"), capsys.readouterr().out
    assert courses[0] == pytest.approx(courses[1], rel=3 * PRECISIONS[dtype])
    assert courses[0][-1] < courses[0][0] - 0.1


def test_a_scaler_overflow_lets_no_optimizer_step_and_halves_the_scale(device):
    subject, batch = learner(device, torch.float16)
    weights = list(subject.model.parameters())
    before = [weight.clone() for weight in weights]
    hook = weights[-1].register_hook(lambda gradient: gradient * math.inf)
    scale = subject.scaler.get_scale()
    assert subject.step([batch], rate=0.01, seed=0).skipped
    assert subject.scaler.get_scale() == scale / 2
    assert all(torch.equal(one, other) for one, other in zip(weights, before, strict=True))
    hook.remove()
    assert not subject.step([batch], rate=0.01, seed=0).skipped
    assert not any(torch.equal(one, other) for one, other in zip(weights, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_step_waits_for_the_device(cuda, dtype):
    subject, batch = learner(cuda, dtype, grad_clip=1.0)
    subject.step([batch], rate=0.01, seed=0)
    torch.cuda.set_sync_debug_mode("error")
    with contextlib.ExitStack() as stack:
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        for _ in range(3):
            outcome = subject.step([batch, batch], rate=0.01, seed=1)
    assert outcome.loss.isfinite()


@pytest.mark.parametrize("compile", ["off", "on"])
def test_memory_that_is_short_halves_a_step(cuda, compile):
    """The process may take 60 % of what the same step takes without a limit."""
    peaks, outcomes, share = [], [], 1.0
    for limited in (False, True):
        subject, (ids, targets) = learner(cuda, torch.bfloat16, vocabulary=32_768, compile=compile)
        batch = (ids.repeat(32, 1), targets.repeat(32, 1))
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if limited:
            share = 0.6 * peaks[0] / torch.cuda.get_device_properties(cuda).total_memory
        try:
            torch.cuda.set_per_process_memory_fraction(share)
            outcomes.append(subject.step([batch], rate=0.01, seed=0))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        peaks.append(torch.cuda.max_memory_reserved())
        del subject, batch, ids, targets
    assert outcomes[0].pieces == 1
    assert outcomes[1].pieces in (2, 4, 8, 16)
    assert peaks[1] <= 0.6 * peaks[0]
    assert outcomes[1].loss.item() == pytest.approx(outcomes[0].loss.item(), rel=0.01)


def test_the_same_greedy_tokens_as_on_the_cpu(device, trained_model):
    """Three texts of different lengths together, and one alone."""
    prompts = [
        trained_model.tokenizer.encode(text) for text in ("Once upon a time", "One day", "There was a little fox")
    ]
    written = []
    for place in (CPU, device):
        engine = TorchEngine(trained_model.model(place))
        for given in (prompts, prompts[:1]):
            engine.keep([])
            logits, texts = engine.prefill(given), []
            for _ in range(30):
                texts.append([int(row.argmax()) for row in logits])
                logits = engine.decode(torch.tensor(texts[-1]).numpy())
            written.append(texts)
    assert written[2:] == written[:2]


def test_the_same_measures_as_on_the_cpu(device, trained_model, config):
    tokens = prepare(config.data, gpt2().vocab_size, trained_model.tokenizer).val
    found, expected = (
        evaluate(trained_model.model(place), tokens, trained_model.tokenizer, batch_size=7, dtype=torch.float32)
        for place in (device, CPU)
    )
    assert found.tokens == expected.tokens
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.accuracy == pytest.approx(expected.accuracy, abs=2 / found.tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_run_trusts_the_device(device, dtype):
    """At its own batches, of 64 k tokens, and with products as exact as those of a run."""
    if dtype == torch.float16 and device.type == "cpu":
        pytest.skip("the CPU has no products in fp16")
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    assert difference(ModelConfig(), 50_257, 512 if device.type == "cuda" else 256, device, dtype) == ""
