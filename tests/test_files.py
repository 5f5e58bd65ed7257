"""Files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from slm import files
from slm.cli import main
from slm.errors import UserError
from slm.files import checksum, locked, replacing, take_lock


def test_the_new_content_takes_the_old_ones_place(tmp_path):
    (tmp_path / "a").write_text("old")
    with replacing(tmp_path / "a", "w") as file:
        file.write("new")
        file.flush()
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_inside_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "a").write_text("old")

    def half():
        with replacing(tmp_path / "a", "w") as file:
            file.write("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path):
    (tmp_path / "a").write_text("old")

    def full():
        with replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*a: No space left on device; what was there stays"):
        full()
    assert (tmp_path / "a").read_text() == "old"


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / "no" / "a"):
        pass


def test_the_mode_is_that_of_an_ordinary_file(tmp_path):
    with replacing(tmp_path / "a"):
        pass
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_checksum_is_that_of_the_checksums_of_blocks(tmp_path, monkeypatch):
    """CRC-32 of `abc` is 352441c2; of the blocks' CRC-32s, least significant byte first."""
    path, read = tmp_path / "a", []
    path.write_bytes(b"")
    assert checksum(path) == "00000000"
    path.write_bytes(b"abcdefghi")
    assert checksum(path, 3) == "2b033be3"
    monkeypatch.setattr(files, "CHECKSUM_BLOCK", 4)
    assert checksum(path, done=read.append) == "1e7fe6e6"
    assert read == [4, 4, 1]


def test_a_lock_is_held_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    with take_lock(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert take_lock(path) is None
        with pytest.raises(UserError, match=rf"^in use \(process {os.getpid()}\): wait for it, stop it, or go$"):
            locked(path, "in use", "or go").__enter__()
    with locked(path, "in use", "or go"):
        assert take_lock(path) is None
    take_lock(path).close()


def test_a_lock_that_its_holder_deleted_is_no_longer_taken(tmp_path, monkeypatch):
    """Who had opened the deleted file before must not hold it beside one who opens a new one."""
    path, opened = tmp_path / "lock", []
    real = files._lock

    def lock(descriptor):
        if not opened:  # its holder deletes it and lets it go before we lock it
            path.unlink()
        opened.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(files, "_lock", lock)
    with take_lock(path):
        assert len(opened) == 2
        assert take_lock(path) is None


def test_a_lock_that_cannot_be_opened_is_said(tmp_path):
    with pytest.raises(UserError, match=r"cannot open .*lock: No such file or directory"):
        locked(tmp_path / "no" / "lock", "in use", "or go").__enter__()


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "fifo", "text", "bytes"])
def test_nothing_but_a_lock_is_written_to(kind, tmp_path):
    """In a folder that others can write to, what lies at a lock's name may be theirs."""
    path, other = tmp_path / ".lock", tmp_path / "other"
    other.write_text("123\n" if kind == "hard link" else "precious")
    match kind:
        case "link":
            path.symlink_to(other)
        case "dangling link":
            path.symlink_to(tmp_path / "made")
        case "hard link":
            path.hardlink_to(other)
        case "fifo":
            os.mkfifo(path)
        case "text":
            path.write_text("12 precious")
        case "bytes":
            path.write_bytes(b"\xff\x00")
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError, match=rf"cannot open {path}: "), locked(path, "in use", "or go"):
        pass
    assert other.read_text() in ("123\n", "precious")
    assert not (tmp_path / "made").exists()
    assert before is None or path.read_bytes() == before


def test_a_lock_left_by_a_process_that_is_gone_is_taken(tmp_path):
    (tmp_path / ".lock").write_text("4194999\n")
    with locked(tmp_path / ".lock", "in use", "or go"):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_that_cannot_be_read_is_not_written_to(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    path.write_text("precious")

    def unreadable(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "_check_is_lock", unreadable)
    with pytest.raises(UserError, match=r"cannot open .*: Input/output error"), locked(path, "in use", "or go"):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("command", ["generate", "serve", "evaluate", "export"])
def test_a_model_whose_name_is_misspelt(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best_model.pt").touch()
    (tmp_path / "runs" / "story").mkdir(parents=True)
    for given, meant in (("best_modle.pt", "best_model.pt"), ("runs/stroy", "runs/story")):
        assert main([command, "--model_path", given]) == 2
        assert capsys.readouterr().err == f"error: no model {Path(given)}: did you mean {Path(meant)}?\n"
    assert main([command, "--model_path", "other.pt"]) == 2
    assert "other.pt: train one with " in capsys.readouterr().err
