"""`slm export`: several formats at once, names of files, what is in the way, and messages."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slm.cli import main
from slm.errors import UserError
from slm.files import find_model, publishing

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_several_formats_beside_the_model_or_elsewhere(trained, tmp_path, capsys):
    path = tmp_path / "v1.5 model.pt"
    path.write_bytes(trained.read_bytes())
    assert main(["export", "--model_path", str(path), "--format", "onnx, torchscript"]) == 0
    assert names(tmp_path) == ["v1.5 model.onnx", "v1.5 model.pt", "v1.5 model.torchscript.pt"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["onnx", "torchscript"]
    assert all("matches PyTorch" in line for line in said)
    assert main(["export", "--model_path", str(path), "--out_dir", str(tmp_path / "new" / "folder")]) == 0
    assert names(tmp_path / "new" / "folder") == ["v1.5 model.onnx"]


def test_a_folder_gives_the_file_its_name(trained, tmp_path, monkeypatch):
    assert main(["export", "--model_path", str(trained), "--format", "huggingface", "--out_dir", str(tmp_path)]) == 0
    (tmp_path / "best_model-huggingface").rename(tmp_path / "gpt2-v1.5")
    monkeypatch.chdir(tmp_path / "gpt2-v1.5")
    assert main(["export", "--model_path", ".", "--out_dir", str(tmp_path / "out")]) == 0
    assert names(tmp_path / "out") == ["gpt2-v1.5.onnx"]


def test_one_format_that_fails_does_not_stop_the_others(trained, tmp_path, capsys):
    (tmp_path / "best_model.onnx").mkdir()
    flags = ["--model_path", str(trained), "--out_dir", str(tmp_path)]
    assert main(["export", *flags, "--format", "onnx,torch_export"]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: {tmp_path / 'best_model.onnx'} is a folder, and in the way: remove it\n"
    assert names(tmp_path) == ["best_model.onnx", "best_model.pt2"]


def test_an_out_dir_that_cannot_be(trained, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", "--model_path", str(trained), "--out_dir", str(tmp_path / "file" / "x")]) == 2
    assert capsys.readouterr().err.startswith("error: cannot make --out_dir ")


def test_a_folder_with_something_else_in_it_stays(tmp_path):
    target = tmp_path / "made"

    def publish(content):
        with publishing(target) as path:
            (path / "part").mkdir(parents=True)
            (path / "a").write_text(content)

    publish("old")
    publish("new")
    assert (target / "a").read_text() == "new"
    for mine in ("mine", "part/mine"):
        (target / mine).write_text("keep")
        with pytest.raises(UserError, match=f"holds '{mine}', which is not part of an export"):
            publish("newer")
        assert ((target / "a").read_text(), (target / mine).read_text()) == ("new", "keep")
        (target / mine).unlink()
    assert names(tmp_path) == ["made"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    def fail():
        with publishing(tmp_path / "file") as path:
            path.write_text("half")
            raise RuntimeError("no")

    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_an_export_that_is_terminated_leaves_nothing(trained, tmp_path):
    code = (
        "import sys, time\nfrom slm.export import onnx\n"
        "def write(loaded, path, format):\n  path.write_text('half'); print('begun', flush=True); time.sleep(60)\n"
        "onnx.write = write\nfrom slm.cli import script\nscript(sys.argv[1:])"
    )
    flags = ["export", "--model_path", str(trained), "--out_dir", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    process.stdout.close()
    assert names(tmp_path) == []


def test_a_path_that_the_system_refuses():
    with pytest.raises(UserError, match="cannot read"):
        find_model(Path("x" * 5000))


def test_the_model_of_a_run_comes_before_a_stray_config(trained, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert find_model(tmp_path) == tmp_path
    (tmp_path / "best_model.pt").write_bytes(trained.read_bytes())
    assert find_model(tmp_path) == tmp_path / "best_model.pt"
