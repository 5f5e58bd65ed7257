"""Folders that are there whole or not at all, each made by one process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slm.data.cache import get_folder, get_folders, has_folder, open_cache, read_array
from slm.errors import UserError
from slm.files import take_lock


def write(folder):
    np.save(folder / "a.npy", np.arange(3))


def test_a_folder_is_made_once(tmp_path):
    assert not has_folder(tmp_path, {"text": 1})
    folder = get_folder(tmp_path, {"text": 1}, write)
    assert has_folder(tmp_path, {"text": 1})
    assert read_array(folder, "a").tolist() == [0, 1, 2]
    assert get_folder(tmp_path, {"text": 1}, lambda folder: pytest.fail("made again")) == folder
    assert get_folder(tmp_path, {"text": 2}, write) != folder
    assert {path.parent for path in tmp_path.glob("*/*")} == set(tmp_path.iterdir())


def test_folders_come_in_the_order_of_the_jobs(tmp_path):
    jobs = [({"number": number}, lambda folder, number=number: np.save(folder / "a.npy", number)) for number in (2, 1)]
    assert [read_array(folder, "a") for folder in get_folders(tmp_path, jobs)] == [2, 1]


def test_what_a_killed_process_left_is_deleted(tmp_path):
    folder = get_folder(tmp_path, {}, write)
    (folder / "a.npy").write_bytes(b"")
    left = tmp_path / f".{folder.name}.abcd"
    left.mkdir()
    (left / "a.npy").write_bytes(b"half")
    Path(f"{folder}.lock").write_text("1")
    assert read_array(get_folder(tmp_path, {}, write), "a").tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failure_leaves_nothing(tmp_path):
    def fails(folder):
        write(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        get_folder(tmp_path, {}, fails)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_with_the_mend(tmp_path):
    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; choose another --cache_dir"):
        get_folder(tmp_path, {}, full)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_makes_is_waited_for(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = get_folder(tmp_path / "elsewhere", {}, write)  # it has the name that it will have here
    code = (
        "import sys; from pathlib import Path; from slm.files import take_lock\n"
        "lock = take_lock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.readline()"
    )
    lock = tmp_path / f"{folder.name}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        assert take_lock(lock) is None
        made = get_folders(tmp_path, [({}, write), ({"number": 1}, lambda _: other.communicate("\n"))])
    assert made[0].name == folder.name


def test_a_cache_that_everybody_can_change_is_said(tmp_path, capsys):
    assert open_cache(str(tmp_path)) == tmp_path
    assert capsys.readouterr().err == ""
    tmp_path.chmod(0o777)
    open_cache(str(tmp_path))
    assert "every user of this machine can change the token files in" in capsys.readouterr().err
