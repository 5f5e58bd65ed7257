"""A cache of folders, each there whole or not at all, named by a hash of everything its content depends on.

Each has checksums and is made again where it is damaged. A folder is made by one process at a time, which a lock file
beside it ensures; processes that need the same folders, also on other machines, divide them among themselves.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from slm.data.source import note, reason
from slm.errors import UserError
from slm.files import checksum, publishing, take_lock, user_path

FORMAT = 2  # raise it when the same facts would give other files
CHECKSUMS = "checksums.json"
MEND = "choose another --cache_dir"

Facts = Mapping[str, object]  # what a folder's content depends on: plain values
Make = Callable[[Path], None]  # writes the content into an empty folder


def open_cache(cache_dir: str) -> Path:
    """The folder `cache_dir`, created if it is missing. Raises UserError where that is impossible."""
    path = user_path(cache_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        open_to_all = sys.platform != "win32" and path.stat().st_mode & stat.S_IWOTH
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    if open_to_all:
        note(f"every user of this machine can change the token files in --cache_dir {path}")
    return path


def has_folder(cache: Path, facts: Facts) -> bool:
    """Whether there is a folder for `facts`, though it may be damaged."""
    return (cache / _key(facts)).is_dir()


def get_folder(cache: Path, facts: Facts, make: Make) -> Path:
    """The folder for `facts`, filled by `make` where it is missing or damaged."""
    return get_folders(cache, [(facts, make)])[0]


def get_folders(cache: Path, jobs: Sequence[tuple[Facts, Make]]) -> list[Path]:
    """The folders for all jobs, each made by the process that gets to it first.

    Raises UserError where the cache cannot be written to, and whatever `make` raises.
    """
    folders: dict[int, Path] = {}  # by the number of the job
    waits = 0
    try:
        while len(folders) < len(jobs):
            before = len(folders)
            for number, (facts, make) in enumerate(jobs):
                if number not in folders and (folder := _made(cache / _key(facts), make)):
                    folders[number] = folder
            if len(folders) == before:  # other processes are making all that is left
                time.sleep(0.1)
                waits += 1
                if waits == 50:
                    print(f"waiting for another process, which is making token files in {cache}", file=sys.stderr)
    except OSError as error:
        raise _unwritable(cache, error) from error
    return [folders[number] for number in range(len(jobs))]


@contextmanager
def reporting_damage(folder: Path) -> Iterator[None]:
    """Whatever is wrong with the content of a folder, the mend is the same."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise UserError(f"the token files in {folder} are damaged: delete that folder ({error})") from error


def read_array(folder: Path, name: str) -> npt.NDArray[Any]:
    """The array in the file `name`.npy of a folder. Raises UserError where it is damaged."""
    with reporting_damage(folder):
        return np.load(folder / f"{name}.npy", allow_pickle=False)


def _unwritable(cache: Path, error: Exception) -> UserError:
    return UserError(f"cannot write token files in {cache}: {reason(error)}; {MEND}")


def _key(facts: Facts) -> str:
    return hashlib.blake2b(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode(), digest_size=16).hexdigest()


def _made(folder: Path, make: Make) -> Path | None:
    """`folder`, made where it is missing or damaged; None where another process is making it."""
    if folder.is_dir() and not _damage(folder):
        return folder
    lock_path = Path(f"{folder}.lock")
    lock = take_lock(lock_path)
    if lock is None:
        return None
    with lock:
        try:
            if not folder.is_dir():
                _make(folder, make)
            elif damage := _damage(folder):  # else another process has just made it
                print(f"the token files in {folder} are damaged ({damage}): making them again", file=sys.stderr)
                _make(folder, make)
        finally:
            with suppress(OSError):
                lock_path.unlink(missing_ok=True)
    return folder


def _make(folder: Path, make: Make) -> None:
    """Make `folder` in the place of what is there; the caller holds its lock."""
    if folder.exists():  # moved away before it is deleted, since another process may still be reading it
        folder.rename(Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)) / "damaged")
    for left in folder.parent.glob(f".{folder.name}.*"):  # that, and what a process left that was killed
        shutil.rmtree(left, ignore_errors=True)
    with publishing(folder, mend=f"; {MEND}") as new:
        new.mkdir()
        make(new)
        found = _checksums(new, sorted(file.name for file in new.iterdir()))
        (new / CHECKSUMS).write_text(json.dumps({"files": found, "checksum": _crc(found)}))


def _damage(folder: Path) -> str:
    """What is wrong with a folder's files; empty where they are as they were written."""
    try:
        written = json.loads((folder / CHECKSUMS).read_text())
        if written["checksum"] != _crc(written["files"]):
            return f"{CHECKSUMS} has changed"
        found = _checksums(folder, written["files"])
        return next((f"{name} has changed" for name, value in written["files"].items() if value != found[name]), "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"not readable, {type(error).__name__}"


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The checksum of each of these files, computed by all cores."""
    names = list(names)
    progress = tqdm(
        total=sum((folder / name).stat().st_size for name in names), desc="checking token files",
        unit="B", unit_scale=True, unit_divisor=1000, leave=False, delay=2,
    )  # fmt: skip
    with progress:
        return {name: checksum(folder / name, done=progress.update) for name in names}


def _crc(checksums: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(checksums, sort_keys=True).encode()):08x}"
