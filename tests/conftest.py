"""A hub on this machine for all tests, and models that several of them use."""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.config.model import ModelConfig
from slm.data.stories import stories
from slm.data.tokenizer import cut, gpt2
from slm.learner.optim import make_optimizers
from slm.model.gpt import GPT
from tests.hub import HUB

# As in an environment that is activated, whose commands are named by their names alone.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(autouse=True)
def _as_many_threads_as_before():
    """Commands that run in this process set PyTorch's threads for all of it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def hub():
    """The hub of the tests, without any data set."""
    HUB.__init__()
    return HUB


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The path of a best_model.pt that knows a little of the built-in stories: trained for seconds, sure of words."""
    texts = list(stories(300))
    tokenizer = cut(np.bincount(gpt2().encode("".join(texts)).astype(np.int64), minlength=50_257), 400)
    ids = torch.from_numpy(np.concatenate([[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts]))
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, context_length=64, n_layer=2, n_head=4, n_embd=64)
    torch.manual_seed(0)
    model = GPT(shape)
    optimizers = make_optimizers(model, "muon", betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(300):
        starts = torch.randint(len(ids) - 65, (16, 1))
        window = ids[starts + torch.arange(65)]
        loss, _ = model.loss(window[:, :-1], window[:, 1:])
        (loss / 1024).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 6e-3 * (1 - step / 300) * group["rate_factor"]
            optimizer.step()
            optimizer.zero_grad()
    assert loss.item() / 1024 < 2.2
    path = tmp_path_factory.mktemp("trained") / "best_model.pt"
    facts = {"step": 300, "text": "built-in stories", "val": {"loss": 1.9, "accuracy": 0.5, "bits_per_byte": 1.2}}
    checkpoint.save(path, Checkpoint(shape, model.state_dict(), tokenizer, facts))
    return path


@pytest.fixture(scope="session")
def trained_model(trained):
    """The checkpoint of `trained`, loaded."""
    return checkpoint.load(trained)


@pytest.fixture(params=["trained", "without biases", "gpt2 vocabulary"])
def each_model(request, trained_model):
    """Checkpoints of three kinds: trained with a cut vocabulary, one without biases, one with all of GPT-2's tokens."""
    if request.param == "trained":
        return trained_model
    torch.manual_seed(1)
    if request.param == "without biases":
        shape = dataclasses.replace(trained_model.config, bias=False)
        return Checkpoint(shape, GPT(shape).state_dict(), trained_model.tokenizer, {})
    shape = ModelConfig(context_length=32, n_layer=1, n_head=2, n_embd=16)
    return Checkpoint(shape, GPT(shape).state_dict(), gpt2(), {})
