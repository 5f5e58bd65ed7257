"""Training and measuring from Python."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import slm
from slm.api import _config
from slm.cli import main
from slm.errors import UserError
from slm.training import command
from slm.training.run import assemble
from tests.runs import stopped_at
from tests.training.conftest import text  # noqa: F401

TOY = {
    "vocab_size": 400, "context_length": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "batch_size": 4, "max_steps": 6,
    "eval_every": 3, "eval_batches": 1, "device": "cpu", "precision": "fp32", "export": "none", "val_fraction": 0.1,
}  # fmt: skip


@pytest.fixture
def toy(text, tmp_path):  # noqa: F811
    return {"dataset": text, **TOY, "cache_dir": tmp_path / "cache", "out_dir": tmp_path / "run"}


def test_a_run_is_what_the_command_makes(toy, tmp_path):
    run = slm.train(**toy)
    assert run.out_dir == tmp_path / "run"
    assert not run.stopped
    assert [row["step"] for row in run.metrics] == [0.0, 3.0, 6.0]
    assert [sample["step"] for sample in run.samples] == [0.0, 3.0, 6.0]
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
    assert run.model.generate("The", max_length=5, seed=0) == run.model.generate("The", max_length=5, seed=0) != ""
    again = {**toy, "out_dir": tmp_path / "by_command"}
    assert main(["train", *(f"--{name}={value}" for name, value in again.items())]) == 0
    ours, its = (Path(folder) / "metrics.csv" for folder in (run.out_dir, again["out_dir"]))
    assert [line.split(",")[0] for line in ours.open()] == [line.split(",")[0] for line in its.open()]
    assert slm.load(tmp_path / "by_command").generate("A", temperature=0) == run.model.generate("A", temperature=0)


def test_a_model_is_measured(toy, capsys):
    run = slm.train(**toy)
    found = slm.evaluate(run.out_dir, toy["dataset"], cache_dir=toy["cache_dir"], device="cpu")
    main(["evaluate", str(run.out_dir), str(toy["dataset"]), "--device=cpu", f"--cache_dir={toy['cache_dir']}"])
    assert capsys.readouterr().out.splitlines()[-1] == f"{run.out_dir}: {found}"
    assert found.tokens > 100


def test_a_model_is_exported(toy, capsys):
    run = slm.train(**toy)
    assert slm.export(run.out_dir, "onnx,torchscript", out_dir=run.out_dir / "more") == [
        run.out_dir / "more" / name for name in ("best_model.onnx", "best_model.torchscript.pt")
    ]
    assert "matches PyTorch" in capsys.readouterr().out
    exported = slm.load(run.out_dir / "more" / "best_model.onnx")
    assert exported.generate("A", temperature=0) == run.model.generate("A", temperature=0)
    with pytest.raises(UserError, match="--format"):
        slm.export(run.out_dir, "word")


def test_an_interrupt_saves_the_run_which_goes_on(toy, monkeypatch):
    def assembled(*parts):
        run = assemble(*parts)
        stopped_at(2)(run)
        return run

    train = command.train
    monkeypatch.setattr(command, "train", lambda config, workers: train(config, workers, assemble=assembled))
    run = slm.train(**toy)
    assert run.stopped
    monkeypatch.undo()
    run = slm.train(out_dir=run.out_dir, resume=True)  # of the same text
    assert not run.stopped
    assert run.metrics[-1]["step"] == 6


def test_another_signal_has_its_usual_effect_once_the_run_is_saved(toy):
    flags = {name: str(each) if isinstance(each, Path) else each for name, each in toy.items() if name != "max_steps"}
    code = f"import slm; slm.train(**{flags}, max_minutes=5); print('went on')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while not (Path(toy["out_dir"]) / "metrics.csv").exists():
        time.sleep(0.05)
    process.terminate()
    assert "stopped and saved" in (said := process.communicate(timeout=60)[0])
    assert "went on" not in said
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(("rank", "said"), [(0, "training\n"), (1, "")])
def test_of_several_processes_only_the_first_prints(rank, said, tmp_path, monkeypatch, capsys):
    ours = {"TORCHELASTIC_RUN_ID": "1", "RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
    for name, value in ours.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(command, "main", lambda config: print("training") or 0)
    slm.train("stories", max_steps=1, out_dir=tmp_path)
    assert capsys.readouterr().out == said
    print("afterwards")
    assert capsys.readouterr().out == "afterwards\n"


def test_values_as_notebooks_have_them(toy):
    values = {"learning_rate": np.float64(0.5), "max_steps": np.int64(7), "batch_size": "auto"}
    config = _config("train", **{**toy, **values})
    assert (config.learning_rate, config.max_steps, config.batch_size) == (0.5, 7, None)
    with pytest.raises(UserError, match=r"^precision must be auto\|fp32"):
        slm.train(precision=np.array([1, 2]))


def test_text_that_standard_output_has_no_characters_for_does_not_end_a_run(toy, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert not slm.train(**{**toy, "out_dir": toy["out_dir"] / "\u00fcber"}).stopped


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(UserError) as raised:
        slm.train("no_such.txt", max_minute=3, epochs="many", n_head=5, resume=1)
    assert raised.value.problems[:3] == (
        "no keyword 'max_minute': did you mean max_minutes?", "epochs must be NUMBER, not 'many'",
        "resume must be true|false, not 1",
    )  # fmt: skip
    assert "n_head" in raised.value.problems[3]
    with pytest.raises(UserError, match=r"^no keyword 'zzz'$"):
        slm.evaluate("best_model.pt", zzz=1)


def test_a_notebook_shows_what_is_wrong_without_a_traceback():
    assert UserError("one", "two")._render_traceback_() == ["error: one", "error: two"]
