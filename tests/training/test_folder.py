"""A run's folder: whose it is, and what is never overwritten."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slm.errors import UserError
from slm.training.folder import RUN_FILES
from tests.runs import change, in_step, rows, train


def test_a_second_run_in_the_same_folder_is_refused(config):
    """flock is held by an open file, not by a process: a second opening is refused within one process, too."""

    def second():
        with pytest.raises(UserError, match=rf"another run is at work in .* \(process {os.getpid()}\): wait for it"):
            train(change(config, resume=True))

    assert train(config, in_step(4, second)) == 0


def test_the_lock_of_a_process_that_is_gone_is_no_lock(config):
    out_dir = Path(config.out_dir)
    out_dir.mkdir()
    program = (
        "import os, sys, time; from pathlib import Path; from slm.files import locked\n"
        "with locked(Path(sys.argv[1]), 'busy', 'or not'):\n    os.kill(os.getpid(), 9)"
    )
    code = subprocess.run([sys.executable, "-c", program, str(out_dir / ".lock")]).returncode
    assert code == -signal.SIGKILL
    assert (out_dir / ".lock").read_text().strip().isdigit()
    assert train(config) == 0


def test_a_run_is_never_overwritten_unasked(config):
    train(config)
    before = {name: (Path(config.out_dir) / name).read_bytes() for name in RUN_FILES}
    with pytest.raises(UserError, match=r"already holds a run .*--resume.*--overwrite.*--out_dir"):
        train(config)
    assert before == {name: (Path(config.out_dir) / name).read_bytes() for name in RUN_FILES}
    assert train(change(config, overwrite=True, max_steps=3)) == 0
    assert rows(config)[-1]["step"] == 3


def test_a_bad_text_costs_an_old_run_nothing(config, tmp_path):
    train(config)
    (tmp_path / "short.txt").write_text("Too short.")
    data = dataclasses.replace(config.data, dataset=str(tmp_path / "short.txt"))
    with pytest.raises(UserError, match="too short"):
        train(change(config, overwrite=True, data=data))
    assert (Path(config.out_dir) / "best_model.pt").exists()


def test_an_out_dir_that_is_a_file(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make --out_dir"):
        train(change(config, out_dir=str(tmp_path / "file")))


def test_an_old_export_goes_when_a_new_run_has_its_first_model(config, monkeypatch):
    train(change(config, export="onnx"))
    old = Path(config.out_dir) / "best_model.onnx"

    def killed():
        raise RuntimeError("killed")

    assert old.exists()
    with pytest.raises(RuntimeError, match="killed"):
        train(change(config, export="onnx", overwrite=True), in_step(1, killed))
    assert not old.exists()


def test_an_export_that_is_there_is_not_overwritten_unasked(config):
    Path(config.out_dir).mkdir()
    (Path(config.out_dir) / "best_model.gguf").write_text("somebody's")
    with pytest.raises(UserError, match=r"already holds a run \(best_model\.gguf\)"):
        train(config)
    assert (Path(config.out_dir) / "best_model.gguf").read_text() == "somebody's"
