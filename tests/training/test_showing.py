"""What only shows a run never ends it, whatever it raises."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slm.data.stories import stories
from slm.errors import UserError
from slm.inference.text import TextModel
from slm.training import command, profiling, progress, report
from slm.training.showing import Showing, printable
from tests.runs import change, load, rows, train

ERRORS = [UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), MemoryError(), KeyError("x"),
          RuntimeError("one\ntwo"), ZeroDivisionError(), OSError(28, "No space left on device")]  # fmt: skip


def test_the_same_warning_is_given_once():
    def refused(reason):
        raise ValueError(reason)

    show = Showing()
    assert show("picture", refused, "so") == "warning: no picture (ValueError: so); the run goes on\n"
    assert show("picture", refused, "so") == ""
    assert show("picture", refused, "or so") == "warning: no picture (ValueError: or so); the run goes on\n"
    assert show("picture", int) == ""


@pytest.mark.parametrize(
    ("number", "owner", "name", "what"),
    [
        (0, report, "draw", "training.png"),
        (1, report, "write_metrics", "metrics.csv"),
        (2, report, "write_samples", "samples.jsonl"),
        (3, TextModel, "generate", "sample of the model's text"),
        (4, command, "describe", "description of the run"),
        (5, progress, "peak_memory", "progress"),
        (0, progress.Progress, "_show", "progress"),
        (5, profiling, "table", "trace.json"),
    ],
)
def test_a_run_goes_on_where_it_cannot_be_shown(number, owner, name, what, config, monkeypatch, capsys):
    error = ERRORS[number]

    def refused(*_, **__):
        raise error

    monkeypatch.setattr(owner, name, refused)
    assert train(change(config, eval_every=4, max_steps=9, profile=what == "trace.json")) == 0
    said = "".join(capsys.readouterr())
    assert said.count(f"warning: no {what} ({type(error).__name__}") == 1
    assert load(config, "last.pt").facts["step"] == load(config).facts["step"] == 9


def test_a_run_goes_on_where_tensorboard_fails(config, monkeypatch, capsys):
    summary = pytest.importorskip("torch.utils.tensorboard")

    def refused(*_, **__):
        raise ERRORS[0]

    monkeypatch.setattr(summary, "SummaryWriter", refused)
    assert train(change(config, tensorboard=True, eval_every=2)) == 0
    assert "".join(capsys.readouterr()).count("warning: no TensorBoard (UnicodeEncodeError") == 1
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="--tensorboard needs the package tensorboard"):
        train(change(config, tensorboard=True, overwrite=True))


NAMES = [b"caf\xe9 \xff.txt", "\u65e5\u672c\u8a9e caf\u00e9.txt".encode()]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is UTF-8")
@pytest.mark.parametrize("name", NAMES, ids=["no UTF-8", "Japanese"])
def test_a_text_and_a_folder_of_any_name(name, config, tmp_path, capsys):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_text("<|endoftext|>".join(stories(80)))
    data = dataclasses.replace(config.data, dataset=str(path))
    config = change(config, data=data, out_dir=f"{path}-run", export="onnx")
    assert train(config) == 0
    assert {"training.png", "samples.jsonl", "metrics.csv"} <= {each.name for each in Path(config.out_dir).iterdir()}
    assert load(config).facts["text"].endswith(printable(path.name))
    assert train(change(config, resume=True, max_steps=10)) == 0
    assert rows(config)[-1]["step"] == 10
    assert "no training.png" not in "".join(capsys.readouterr())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is UTF-8")
@pytest.mark.parametrize(("name", "utf8"), [(NAMES[0], "1"), (NAMES[1], "0")], ids=["no UTF-8", "Japanese"])
def test_a_name_that_the_locale_has_no_letters_for(name, utf8, config, tmp_path):
    """With all that shows a run, and on to its end after it was resumed by --resume alone."""
    folder = os.fsencode(tmp_path)
    (tmp_path / "text").write_text("<|endoftext|>".join(stories(80)))
    os.rename(folder + b"/text", folder + b"/" + name)  # noqa: PTH104 - bytes
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": utf8, "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    toy = ["--vocab_size=400", "--context_length=16", "--n_layer=1", "--n_head=2", "--n_embd=16", "--batch_size=4",
           "--max_steps=9", "--eval_every=3", "--eval_batches=2", "--precision=fp32", "--device=cpu", "--profile",
           "--tensorboard", "--export=none"]  # fmt: skip
    out_dir = b"--out_dir=" + folder + b"/run " + name
    files = [b"--dataset=" + folder + b"/" + name, b"--cache_dir=" + folder + b"/cache " + name, out_dir]
    for flags, lines in (([*toy, *files], 5), (["--resume", out_dir, "--max_steps=12"], 6)):
        ran = subprocess.run([sys.executable, "train.py", *flags], env=environment, capture_output=True, check=False,
                             cwd=Path(__file__).parents[2])  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert len(Path(os.fsdecode(folder + b"/run " + name), "metrics.csv").read_text().splitlines()) == lines
