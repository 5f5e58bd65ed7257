"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from slm.errors import UserError


@contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write that takes the place of `path` when the block ends well, and leaves `path` alone otherwise.

    The bytes are on the disk before the name changes, and the change of name is on the disk after it.
    Raises UserError where the disk is full or the folder cannot be written to.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
        temporary = None
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save hides a full disk behind an error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        kept = "; what was there stays" if path.exists() else ""
        raise UserError(f"cannot write {path}: {cause.strerror or cause}{kept}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def user_path(text: str) -> Path:
    """The path that a user wrote, `~` being their home where there is one."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown ~name


def sync_folder(folder: Path) -> None:
    """Force a change of names in `folder` to the disk."""
    if os.name == "nt":  # there a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
