"""`slm doctor`."""

import json
import re
from pathlib import Path

import torch

from slm.cli import main
from slm.data.batches import TrainingBatches
from slm.learner.feed import Feed
from slm.training import doctor
from tests.runs import new_run

PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_the_report_of_a_text(text, tmp_path, capsys):
    arguments = ["doctor", str(text), "--cache_dir", str(tmp_path), "--device=cpu", "--precision=fp32", "--json"]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    own, tinystories = facts["texts"]
    assert facts["device"] == "cpu"
    assert facts["precision"] == "fp32"
    assert facts["compile"] is False
    assert facts["flops"].keys() == {"fp32", "bf16"}
    assert facts["torch"] == torch.__version__
    assert facts["fault"] == ""
    assert text.name in own["text"]
    assert own["rows"] < tinystories["rows"] == 50_257
    assert round(tinystories["tokens"] / 1e6) == 466
    assert min(own["tokens_per_second"], tinystories["tokens_per_second"]) > 0


def test_a_text_too_short_to_train_on_is_an_error(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("Once upon a time. " * 20)
    assert main(["doctor", str(tmp_path / "short.txt"), f"--cache_dir={tmp_path}", "--device=cpu"]) == 2
    assert "the text is too short: " in capsys.readouterr().err


def test_the_speed_is_the_median_without_the_first_step(config):
    seconds = iter([50.0, 0.5, 8.0, 2.0, 1.0])
    now, begun = [0.0], [False]

    def clock():
        now[0] += next(seconds) if begun[0] else 0.0
        begun[0] = not begun[0]
        return now[0]

    # 4 sequences of 16 tokens; after the first, which counts for nothing, three steps are enough: 8.5 s
    assert doctor.speed(new_run(config), clock) == 64 / 2.0


FACTS = {
    "slm": "0.1.0", "python": "3.12.1", "torch": "2.11.0", "system": "Linux", "cores": 16, "memory": 128e9,
    "disk_free": 64e9, "device": "cuda", "device_name": "NVIDIA T4", "device_memory": 16e9, "precision": "fp16",
    "asked": "auto", "compile": True, "flops": {"fp32": 7e12, "bf16": 3.5e12, "fp16": 4e13}, "fault": "",
    "texts": [{"text": "book.txt", "tokens": 120_000, "rows": 8000, "batch_size": 12, "tokens_per_second": 4000.0}],
    "missing": {"gguf": "--format gguf"},
}  # fmt: skip


def test_the_report_in_words(monkeypatch):
    monkeypatch.setattr(doctor, "python", lambda: "python")
    assert doctor.in_words(FACTS).splitlines() == [
        "slm        0.1.0; Python 3.12.1, PyTorch 2.11.0",
        "machine    Linux; 16 cores, 128 GB of memory, 64 GB free on this disk",
        "device     NVIDIA T4, 16 GB",
        "products   fp32 7,000, bf16 3,500, fp16 40,000 GFLOP/s",
        "precision  auto: fp16 (the fastest that it has)",
        "compile    auto: on (it is on only on CUDA)",
        "check      loss and gradients agree with the CPU's",
        "text       book.txt: 120,000 tokens, 8,000 embedding rows to train",
        "           4,000 tokens/s with the default model, batch size 12: "
        "a pass takes 30 s; 10 minutes are 2,400,000 tokens",
        "missing    gguf, for --format gguf: python -m pip install gguf",
    ]
    wrong = doctor.in_words({**FACTS, "fault": "cuda computes something else", "texts": []})
    assert "fault      cuda computes something else" in wrong
    assert "check" not in wrong
    on_cpu = doctor.in_words({**FACTS, "device": "cpu", "device_name": "CPU, 2 threads", "precision": "fp32"})
    assert "precision  bf16, as asked for\n" in doctor.in_words({**FACTS, "precision": "bf16", "asked": "bf16"})
    assert "; 16 cores, 64 GB free" in doctor.in_words({**FACTS, "memory": None})
    assert "precision  auto: fp32 (bf16 is 0.5 times as fast here, and is taken from 1.5 on)\n" in on_cpu


def test_optional_packages_are_those_of_the_project():
    bounds = re.findall(r'"([\w-]+)>=', PROJECT.split("[project.optional-dependencies]")[1].split("dev = [")[0])
    assert {name.replace("-", "_") for name in bounds} - {"pydantic"} == doctor.OPTIONAL.keys() - {"tensorboard"}


def test_the_text_like_tinystories_can_lie_in_a_gpus_memory():
    """As a run on CUDA keeps it."""
    tokens = doctor._like_tinystories().train.ids
    feed = Feed(TrainingBatches(tokens, 2, 128, 0), torch.device("cpu"), room=1 << 30)
    assert feed.tokens is not None
    assert all(each.shape == (2, 128) and int(each.min()) >= 0 for each in feed(0))
