"""What the code does on Windows and on macOS, with their functions put in the place of this machine's."""

import importlib
import math
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slm import cores, device, files
from slm.data import cache
from slm.errors import UserError
from slm.server import listening
from slm.training import interrupt

CPU = torch.device("cpu")


@pytest.fixture
def windows(monkeypatch):
    """Windows' locks: of one byte of a file, held by a descriptor. Returns who holds which byte."""
    held = {}

    def locking(descriptor, mode, size):
        assert (mode, size) == ("at once", 1)
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        holder = held.setdefault(place, descriptor)
        if holder != descriptor and Path(f"/dev/fd/{holder}").exists():  # and has not closed it
            raise PermissionError(13, "Permission denied")
        held[place] = descriptor

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK="at once", locking=locking))
    for module in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, module, None)  # there is none
    return held


def test_a_lock_on_windows_is_behind_the_text_that_others_may_read(windows, tmp_path):
    path = tmp_path / "lock"
    with files.take_lock(path) as first:
        assert windows == {(path.stat().st_ino, 1 << 20): first.fileno()}
        assert path.read_text() == f"{os.getpid()}\n"
        assert files.take_lock(path) is None
        with pytest.raises(UserError, match=rf"^in use \(process {os.getpid()}\): "), files.locked(path, "in use", ""):
            pass
    with files.locked(path, "in use", ""):
        assert files.take_lock(path) is None


def test_files_appear_whole_on_windows_where_folders_cannot_be_opened(windows, tmp_path, monkeypatch):
    opened, real = [], os.open

    def open_file(path, flags, *more, **how):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        opened.append((os.fspath(path), flags))
        return real(path, flags, *more, **how)

    monkeypatch.setattr(os, "open", open_file)
    with files.replacing(tmp_path / "a", "w") as file:
        file.write("new")
    with files.publishing(tmp_path / "b") as made:
        made.mkdir()
        (made / "c").write_text("new")
    assert (tmp_path / "a").read_text() == (tmp_path / "b" / "c").read_text() == "new"
    assert [flags for path, flags in opened if Path(path).name == "c"] == [os.O_RDWR]  # to be forced to the disk


def test_every_system_has_the_same_lines(tmp_path, monkeypatch):
    """On Windows the end of a line would become two characters."""
    modes, real = [], os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *given, **how: modes.append(how) or real(*given, **how))
    with files.replacing(tmp_path / "a", "w") as file:
        file.write("a\nb\n")
    assert (tmp_path / "a").read_bytes() == b"a\nb\n"
    assert modes == [{"encoding": "utf-8", "newline": "\n"}]


def test_what_windows_does_not_say(windows, tmp_path, monkeypatch, capsys):
    """Memory held, memory there, descriptors, and who else may write to a folder."""
    assert device.peak_memory(CPU) is None
    assert device.total_memory(CPU) == math.inf
    assert listening.room.__wrapped__() == (1000, 32)
    tmp_path.chmod(0o777)
    cache.open_cache(str(tmp_path))
    assert capsys.readouterr().err == ""


def test_memory_on_macos_is_in_bytes(monkeypatch):
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=3_000_000))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert device.peak_memory(CPU) == 3_000_000
    monkeypatch.setattr(sys, "platform", "linux")
    assert device.peak_memory(CPU) == 3_072_000_000


def test_cores_where_no_affinity_and_no_quota_are_known(monkeypatch):
    """macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cores, "Path", lambda path: Path("/no/such/file"))
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cores.usable_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.usable_cores() == 1


def test_signals_that_stop_a_run_on_windows(monkeypatch):
    """SIGBREAK is a closed window, or Ctrl-Break."""
    names = {name: getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIG_DFL", "SIG_IGN", "Handlers")}
    try:
        monkeypatch.setitem(sys.modules, "signal", SimpleNamespace(**names, SIGBREAK=21))
        assert importlib.reload(interrupt).STOPPING == [signal.SIGTERM, 21, signal.SIGINT]
    finally:
        monkeypatch.undo()
        importlib.reload(interrupt)
