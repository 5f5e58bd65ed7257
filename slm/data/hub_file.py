"""A file of a data set on the Hugging Face hub, read through a copy here.

Most formats are read from their beginning, and the copy grows as the file is read. It stays until the whole file was
read, so an interruption costs one request. A Parquet file has its columns one beside the other: its copy has as many
bytes, but holes where the columns are that nobody needs. It is fetched again after an interruption.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from slm.data.arrow_rows import BATCH_ROWS, columns_of_group, fields_of_schema
from slm.data.fields import columns
from slm.data.source import reason
from slm.data.text_file import suffix
from slm.errors import UserError
from slm.files import open_unlinked

REQUEST = 1 << 24  # bytes that are asked for at a time
FOOTER = 1 << 20  # bytes at the end of a Parquet file that are asked for first
GAP = 1 << 20  # bytes between two columns that are fetched with them, which costs less than another request


class HubFile:
    """The file `path` of the data set `name` at the revision `sha`.

    kept: where the copy is; what another process left there of the same file is used.
    """

    def __init__(self, name: str, sha: str, path: str, kept: Path) -> None:
        self.name = path.rpartition("/")[2]
        self._shown = f"{name}/{path}"
        self._address = f"datasets/{name}@{sha}/{path}"
        self._kept = kept

    def __str__(self) -> str:
        return self._shown

    def __fspath__(self) -> str:
        return str(self._kept)

    def open(self, mode: str = "rb", /) -> Any:
        """The bytes of the file in order; of a Parquet file the copy."""
        if suffix(self) == ".parquet":
            return self._kept.open(mode)
        return io.BufferedReader(_Growing(self._remote(), self._copy_here(), self.name))

    def fetch(self, text_field: str, rows: int | None) -> None:
        """Fetch what cannot be read in order: the columns of text of a Parquet file, or a whole Arrow file.

        rows: how many rows will be read; None: all.
        """
        if suffix(self) == ".parquet":
            self._fetch_columns(text_field, rows)
        elif suffix(self) == ".arrow":
            with self.open() as file:
                while file.read(REQUEST):
                    pass

    def __enter__(self) -> HubFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Delete the copy once all was read; else it stays, for the next run to go on from."""
        if kind is None:
            self._kept.unlink(missing_ok=True)

    def _copy_here(self) -> IO[bytes]:
        return os.fdopen(open_unlinked(self._kept), "r+b")

    def _remote(self) -> Any:
        from huggingface_hub import HfFileSystem

        with _explaining(self):
            return HfFileSystem().open(self._address, "rb", cache_type="none")

    def _fetch_columns(self, text_field: str, rows: int | None) -> None:
        from pyarrow import parquet

        with self._remote() as remote, self._copy_here() as kept:
            size = remote.size
            kept.truncate(size)
            last = _copy(remote, kept, max(0, size - FOOTER), size)
            footer = int.from_bytes(last[-8:-4], "little") + 8
            if len(last) < footer <= size:
                _copy(remote, kept, size - footer, size)
            kept.flush()
            metadata = parquet.read_metadata(self._kept)
            names = columns(fields_of_schema(metadata.schema.to_arrow_schema(), text_field, self))
            stretches = list(_joined(_columns(metadata, names, rows)))
            with _progress(self.name, sum(end - start for start, end in stretches)) as progress:
                for start, end in stretches:
                    for at in range(start, min(end, size), REQUEST):
                        progress.update(len(_copy(remote, kept, at, min(at + REQUEST, end, size))))


def _progress(name: str, total: int, done: int = 0) -> Any:
    """A bar of bytes."""
    return tqdm(desc=f"fetching {name}", total=total, initial=done, unit="B", unit_scale=True, leave=False, delay=0.5)


def _copy(remote: Any, kept: Any, start: int, end: int) -> bytes:
    """Copy these bytes to the same place. Returns them."""
    with _explaining(remote.path):
        remote.seek(start)
        data: bytes = remote.read(end - start)
        if len(data) != end - start:
            raise OSError(f"{len(data):,} bytes came instead of {end - start:,}")
    kept.seek(start)
    kept.write(data)
    return data


@contextmanager
def _explaining(file: object) -> Iterator[None]:
    """Turn whatever goes wrong with the hub, for which there are many exceptions, into a UserError."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"cannot fetch {file} from the hub: {explained(error)}; run again to go on from there"
        ) from error


def explained(error: Exception) -> str:
    """In a few words what went wrong with the hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError) or " is a gated dataset" in str(error):
        return "its owner gives access on request: ask for it on the data set's page, then log in with hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it has no data set of that name, or a private one: log in with hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    said = re.sub(r",? ?'?\(Request ID: [^)]*\)'?", "", str(error))  # it differs each time
    # The lines after the first have what there is to choose from.
    return (" ".join(said.split())[:500] or reason(error)).rstrip(".")


def _columns(metadata: Any, names: list[str], rows: int | None) -> Iterator[tuple[int, int]]:
    """Where the columns `names` of the first `rows` rows begin and end in a Parquet file; they are read in batches."""
    done = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        if rows is not None and done >= rows + BATCH_ROWS:
            return
        done += group.num_rows
        for column in columns_of_group(group, names):
            dictionary = column.dictionary_page_offset or column.data_page_offset
            start = min(dictionary, column.data_page_offset)
            yield start, start + column.total_compressed_size


def _joined(stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Stretches in order, those that are close together joined."""
    start = end = 0
    for first, last in sorted(stretches):
        if end and first > end + GAP:
            yield start, end
            end = 0
        start = start if end else first
        end = max(end, last)
    if end:
        yield start, end


class _Growing(io.RawIOBase):
    """The bytes of a remote file from its beginning: first those that are kept, then others, which are kept, too."""

    def __init__(self, remote: Any, file: IO[bytes], name: str) -> None:
        self._remote, self._file = remote, file
        self._kept = min(file.seek(0, io.SEEK_END), remote.size)
        self._at = 0
        self._progress = _progress(name, remote.size, self._kept)

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` as far as that needs no further request. Returns the number of bytes, 0 at the end."""
        if self._at == self._kept < self._remote.size:
            data = _copy(self._remote, self._file, self._kept, min(self._kept + REQUEST, self._remote.size))
            self._file.flush()
            self._kept += len(data)
            self._progress.update(len(data))
        self._file.seek(self._at)
        data = self._file.read(min(len(buffer), self._kept - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close both files and the progress bar."""
        if not self.closed:
            self._progress.close()
            self._file.close()
            self._remote.close()
        super().close()
