"""Files appear whole or not at all."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from slm.cores import usable_cores
from slm.errors import UserError

CHECKSUM_BLOCK = 1 << 24  # bytes; a part of what a checksum is


@contextmanager
def replacing(path: Path, mode: str = "wb", keep: Path | None = None) -> Iterator[IO[Any]]:
    """A file to write that takes the place of `path` when the block ends well, and leaves `path` alone otherwise.

    The bytes are on the disk before the name changes, and the change of name is on the disk after it. keep: what was at
    `path` goes on under this name.
    Raises UserError where the disk is full or the folder cannot be written to.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
        with os.fdopen(descriptor, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        if keep is not None and path.exists():
            _rename_away(path, keep)
        Path(temporary).replace(path)
        temporary = None
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        reason = _of_the_disk(error)
        if not reason:
            raise
        kept = "; what was there stays" if path.exists() else ""
        raise UserError(f"cannot write {path}: {reason}{kept}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _rename_away(path: Path, keep: Path) -> None:
    """Give `path` the name `keep`, and where the file system has links let it stay at `path` too."""
    link = keep.with_name(f".{keep.name}.link")
    try:
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
    except OSError:
        path.replace(keep)
        return
    try:
        link.replace(keep)
    finally:
        link.unlink(missing_ok=True)


@contextmanager
def publishing(path: Path, mend: str = "") -> Iterator[Path]:
    """A path of the same name for a file or folder to make, which takes the place of `path` when the block ends well.

    For what other programs write, or of several files. An old file or folder stays whole until the new one is on the
    disk. Raises UserError where the disk is full or the folder cannot be written to, saying `mend`, and where an old
    folder holds something that the new one does not: that is not ours to delete.
    """
    try:
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True
        ) as temporary:
            made = Path(temporary) / path.name
            yield made
            if path.exists() and path.is_dir() != made.is_dir():
                raise UserError(f"{path} is a {'folder' if path.is_dir() else 'file'}, and in the way: remove it")
            if path.is_dir():
                old, new = ({file.relative_to(of) for file in of.rglob("*")} for of in (path, made))
                if old - new:
                    raise UserError(f"{path} holds '{min(old - new)}', which is not part of an export: remove it")
            for place in (made, *made.rglob("*")):
                sync(place)
            if path.is_dir():
                path.rename(Path(temporary) / "old")
            made.replace(path)
            sync(path.parent)
    except (OSError, RuntimeError) as error:
        reason = _of_the_disk(error)
        if not reason:
            raise
        raise UserError(f"cannot write {path}: {reason}{mend}") from error


def _of_the_disk(error: BaseException) -> str:
    """Why the disk refused to write, which PyTorch hides behind an error of its own; "" where it did not refuse."""
    cause = error if isinstance(error, OSError) else error.__context__
    if not isinstance(cause, OSError):
        return ""
    if cause.strerror is None and str(cause).endswith(" written"):  # NumPy does not say why
        return "not all of it could be written, as on a full disk"
    return cause.strerror or str(cause) or type(cause).__name__


@contextmanager
def locked(path: Path, busy: str, mend: str) -> Iterator[None]:
    """Hold the lock file `path` until the block ends; the file itself stays.

    Raises UserError where another process holds it, with the texts `busy` and `mend`, and where it cannot be opened.
    """
    try:
        lock = take_lock(path)
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}") from error
    if lock is None:
        owner = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
        process = f" (process {owner})" if owner else ""
        raise UserError(f"{busy}{process}: wait for it, stop it, {mend}")
    with lock:
        yield


def take_lock(path: Path) -> IO[str] | None:
    """The lock file `path`, held until it is closed; None where another process holds it.

    The system takes a lock back when its process ends, so that none is ever left behind; the file says which process
    holds it. The holder may delete the file before it closes it. In a folder that others can write to, it may be
    theirs: nothing is written through a link, or into a file that is not such a lock. Raises OSError where it cannot be
    opened, or is something else.
    """
    while True:
        file = os.fdopen(open_unlinked(path), "r+", encoding="utf-8", errors="replace")
        try:
            _check_is_lock(file, path)
        except OSError:
            file.close()
            raise
        try:
            _lock(file.fileno())
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a file system that has no locks
            pass
        if not _is_at(
            file, path
        ):  # its last holder deleted it after it was opened here: whoever comes next locks another
            file.close()
            continue
        with suppress(OSError):  # on a full disk the lock holds, though it does not say whose it is
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        return file


def open_unlinked(path: Path) -> int:
    """A descriptor to read and write the file `path`, which is made where it is missing.

    Raises OSError where it cannot be opened, is a link, has another name too, or is no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
    about = os.fstat(descriptor)
    if path.is_symlink() or not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        os.close(descriptor)
        raise FileExistsError(errno.EEXIST, "it is a link, or no regular file: remove it")
    return descriptor


def _check_is_lock(file: IO[str], path: Path) -> None:
    """Raises FileExistsError where an open file is not a lock: empty, or with a number."""
    if not re.fullmatch(r"\d{0,20}\n?", file.read(25)):
        raise FileExistsError(errno.EEXIST, "it is in the way of a lock, and is not one itself: remove it")


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError where another process holds the lock of this file."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # far behind the text, which others may read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def user_path(text: str) -> Path:
    """The path that a user wrote, `~` being their home where there is one."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown ~name


def make_out_dir(folder: Path) -> None:
    """Make the folder that `--out_dir` names. Raises UserError where the system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot make --out_dir {folder}: {reason}") from error


def did_you_mean(path: Path, names: Sequence[str] = ()) -> str:
    """A question that names what stands near the missing `path` in its folder, or in `names`; "" where nothing does.

    Raises OSError where the folder cannot be read.
    """
    here = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    close = [str(path.parent / name) for name in difflib.get_close_matches(path.name, [*here, *names])]
    return f"did you mean {' or '.join(close)}?" if close else ""


def find_model(path: Path) -> Path:
    """`path` itself, or where it is a run's folder the model in it.

    Raises UserError where that holds none, and where `path` is missing and something beside it has nearly its name.
    """
    names = ("best_model.pt", "best_model.onnx")
    try:
        if not path.is_dir():
            if not path.exists() and (mend := did_you_mean(path)):
                raise UserError(f"no model {path}: {mend}")
            return path
        for name in names:
            if (path / name).exists():
                return path / name
        if (path / "config.json").exists():
            return path
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    raise UserError(
        f"{path} holds no model: neither {' nor '.join(names)}, nor the config.json of a transformers model"
    )


def checksum(path: Path, size: int | None = None, done: Callable[[int], object] = lambda count: None) -> str:
    """A checksum of the file's first `size` bytes, by default of all, in eight hex digits.

    It is the CRC-32 of the CRC-32s of blocks, so that all cores work on it. done: called with the bytes read.
    """
    size = path.stat().st_size if size is None else size

    def of_block(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            block = file.read(min(CHECKSUM_BLOCK, size - start))
        return zlib.crc32(block).to_bytes(4, "little")

    checksums = b""
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start, of_one in zip(
            range(0, size, CHECKSUM_BLOCK), pool.map(of_block, range(0, size, CHECKSUM_BLOCK)), strict=True
        ):
            checksums += of_one
            done(min(CHECKSUM_BLOCK, size - start))
    return f"{zlib.crc32(checksums):08x}"


def sync(path: Path) -> None:
    """Force a file, or a change of names in a folder, to the disk."""
    if sys.platform == "win32" and path.is_dir():  # there a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
