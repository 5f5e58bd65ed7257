"""What a model in training costs, and how that is said."""

from types import SimpleNamespace

import pytest
import torch

from slm.config.model import ModelConfig
from slm.config.train import TrainConfig
from slm.learner.workers import Workers
from slm.training import cost
from slm.training.describe import duration, speed
from tests.runs import CPU, change, load, new_run, train


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (45, "45 s"),
        (59.4, "59 s"),
        (162, "2 min 42 s"),
        (720, "12 min"),
        (3599, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (172_700, "47 h 58 min"),
        (172_800, "2 days"),
        (1_975_000, "23 days"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


def test_speed_counts_the_rows_in_use(config):
    run = new_run(config)
    shape, in_use = run.learner.model.config, run.learner.model.rows_in_training
    # 2 blocks of 12 C^2 and the rows, six times; attention 12 L C T
    assert cost.flops_per_token(shape, in_use) == 6 * (2 * 12 * 16**2 + in_use * 16) + 12 * 2 * 16 * 16
    said = speed(run.learner, [{"tokens_per_second": speed} for speed in (0.0, 1000.0, 3000.0, 2000.0)])
    assert said == "2,000 tokens/s"
    run.learner.device = torch.device("meta")  # a device of which no peak is known
    said = speed(run.learner, [{"tokens_per_second": 1e9}])
    assert said == f"1,000,000,000 tokens/s, {1e-3 * cost.flops_per_token(shape, in_use):.3g} TFLOP/s"


def test_all_tokens_have_weights_in_the_checkpoint(config):
    train(config)
    weights = load(config).weights["token_embedding.weight"]
    assert weights.shape == (400, 16)
    run = new_run(change(config, overwrite=True))
    shape, in_use = run.learner.model.config, run.learner.model.rows_in_training
    assert in_use < 400
    weights = sum(weight.numel() for weight in load(config).weights.values())
    assert cost.in_training(shape, shape.vocab_size) == (weights, 2 * 12 * 16**2 + 400 * 16)
    assert cost.in_training(shape, in_use)[0] == sum(weight.numel() for weight in run.learner.model.parameters())


def test_the_memory_estimate_counts_what_there_is(config):
    run = new_run(change(config, optimizer="adamw"))
    shape, in_use = run.learner.model.config, run.learner.model.rows_in_training
    few, many = (cost.memory_estimate(run.config, shape, in_use, batch, CPU, torch.float32) for batch in (4, 8))
    # 64 tokens more: their logits, and 18 vectors of each of 2 layers, 2 of the stream and 4 around it
    assert many - few == 64 * in_use * 4 + 64 * 16 * 4 * (18 * 2 + 2 + 4)
    lean = change(config, activation_checkpointing=True)
    less, more = (cost.memory_estimate(lean, shape, in_use, batch, CPU, torch.float32) for batch in (4, 8))
    assert more - less < many - few


@pytest.mark.parametrize(
    ("length", "windows"),
    [
        ({"epochs": 10.0}, 512),  # 64 k of 128 tokens, of a text of 20 million
        ({"epochs": 0.1}, 32),  # 2 million tokens: some 400 steps of 5,000
        ({"epochs": 200.0}, 768),  # 4,000 million: 1,536 times their root
        ({"max_minutes": 1.0}, 512),
        ({"max_steps": 100}, 512),
    ],
)
def test_a_gpu_gets_a_micro_batch_that_fills_it_but_not_too_few_steps(length, windows, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda of: SimpleNamespace(total_memory=80 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda of: "NVIDIA H100")
    pick = cost.pick_batch_size
    args = (ModelConfig(), 10_496, 20_000_000, torch.device("cuda"), torch.bfloat16, Workers())
    assert pick(TrainConfig(**length), *args) == windows


def test_an_apple_gpu_gets_no_micro_batch_beyond_which_gradients_have_been_wrong():
    args = (ModelConfig(), 10_496, 20_000_000, torch.device("mps"), torch.float32, Workers())
    assert cost.pick_batch_size(TrainConfig(epochs=200.0), *args) == 256  # of 128 tokens; by the text it were 768
