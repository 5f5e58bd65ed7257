"""`slm train`: what it refuses, says and exports."""

import dataclasses
from pathlib import Path

import pytest
import torch

from slm.errors import UserError
from slm.inference.onnx_engine import OnnxEngine
from slm.training.command import main as train_main
from slm.training.folder import RUN_FILES
from tests.runs import change, load, train


def test_deterministic_asks_pytorch_for_it(config):
    train(change(config, deterministic=True))
    try:
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_training_on_the_built_in_stories_says_so(config, capsys):
    train(change(config, data=dataclasses.replace(config.data, dataset="stories"), max_steps=1))
    assert "training on the built-in stories; --dataset takes a text of yours" in capsys.readouterr().out


def test_fp16_on_a_cpu_and_a_missing_gpu_are_refused(config):
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        train(change(config, precision="fp16"))
    with pytest.raises(UserError, match=r"--min_lr 1.0 is above the peak rate, 0.096"):
        train(change(config, min_lr=1.0))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"--device cuda is not available .*; there is: "):
            train_main(change(config, device="cuda", precision="fp32"))


def test_the_exported_model_is_the_best_one(config, monkeypatch):
    train(change(config, export="onnx,torchscript"))
    onnx, best = OnnxEngine(Path(config.out_dir) / "best_model.onnx"), load(config)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = best.model()(ids).numpy()
    assert abs(onnx.all_logits(ids.numpy()) - expected).max() < 1e-4
    assert onnx.facts["step"] == best.facts["step"]
    assert (Path(config.out_dir) / "best_model.torchscript.pt").exists()


@pytest.mark.parametrize("error", [UserError("the disk is full"), RuntimeError(""), MemoryError("9 TB")])
def test_a_failing_export_never_costs_the_run(config, error, monkeypatch, capsys):
    def broken(*_):
        raise error

    monkeypatch.setattr("slm.export.onnx.write", broken)
    assert train(change(config, export="onnx,torchscript")) == 0
    said = capsys.readouterr().out
    assert f"warning: {'onnx: ' if isinstance(error, UserError) else ''}{str(error) or 'RuntimeError'}" in said
    again = f"python export.py --model_path {config.out_dir}/best_model.pt --format onnx\n"
    assert f"the run is safe, and to try again: {again}" in said
    files = {path.name for path in Path(config.out_dir).iterdir()}
    assert files == {*RUN_FILES, ".lock", "best_model.torchscript.pt"}
