"""The rows of Parquet and Arrow files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from slm.data.fields import TURNS, Fields, Rows, choose_field, columns, text_of_rows
from slm.data.source import ROW_LIMIT, unreadable
from slm.data.text_file import BLOCK, UTF_8, File, too_long
from slm.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

STRINGS = ("string", "large_string", "string_view")  # types of columns of text
BATCH_ROWS = 256  # read at a time, at most
BATCH_BYTES = 1 << 24  # of text read at a time, unless a single row has more


def parquet_rows(file: File, text_field: str, errors: str, encoding: str = UTF_8) -> Rows:
    """The rows of a Parquet file; its strings are always UTF-8: `errors` and `encoding` do not matter."""
    from pyarrow import parquet

    with _arrow_errors(file):
        # Without these two options the column is read at once for a row group, which may be the whole file.
        options = {"buffer_size": BLOCK, "pre_buffer": False}
        opened = parquet.ParquetFile(os.fspath(file), **options)
        fields = fields_of_schema(opened.schema_arrow, text_field, file)
        size, packed = _batch_size(opened.metadata, columns(fields), file)
        if packed:
            opened = parquet.ParquetFile(os.fspath(file), read_dictionary=packed, **options)
        batches = opened.iter_batches(batch_size=size, columns=columns(fields))
        return text_of_rows(_rows_of_batches(batches, file), text_field, str(file), fields)


def arrow_rows(file: File, text_field: str, errors: str, encoding: str = UTF_8) -> Rows:
    """The rows of an Arrow stream or file, as `save_to_disk` of the package `datasets` and Feather write them."""
    import pyarrow as pa

    with _arrow_errors(file):
        opened = pa.memory_map(os.fspath(file))
        is_file = opened.read(6) == b"ARROW1"
        opened.seek(max(0, opened.size() - 8))
        if not is_file and opened.read(8) != b"\xff\xff\xff\xff\0\0\0\0":  # without it, half a stream is one
            raise pa.ArrowInvalid("not an Arrow stream, or it was cut short")
        opened.seek(0)
        reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(opened)
        fields = fields_of_schema(reader.schema, text_field, file)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        chosen = (batch.select(columns(fields)) for batch in batches)
        return text_of_rows(_rows_of_batches(_checked(chosen), file), text_field, str(file), fields)


def _checked(batches: Iterable[Any]) -> Iterator[Any]:
    """These batches, checked: pyarrow trusts an Arrow file, whose damage could end the process."""
    for batch in batches:
        batch.validate(full=True)
        yield batch


# --- Bounded memory ---


def _batch_size(metadata: Any, names: list[str], file: File) -> tuple[int, list[str]]:
    """How many rows of a Parquet file to read at a time, and the columns to keep encoded by dictionaries meanwhile.

    A few kilobytes may hold gigabytes: a value in the dictionary that many rows have, or what compresses well. So a
    batch has fewer rows the longer they may be. The length of a list is only known when it is read. A page is always
    decompressed whole, and may be all of a row group: what no text compresses to is refused.
    """
    size, packed, before = BATCH_ROWS, set(), 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in columns_of_group(group, names):
            path = column.path_in_schema
            length, rows = column.total_uncompressed_size, max(1, group.num_rows)
            if length > ROW_LIMIT * rows:
                raise too_long(f"one of the rows {before + 1:,} to {before + rows:,} of {file}")
            if length > max(4 * ROW_LIMIT, 200 * column.total_compressed_size):
                problem = f"{length:,} bytes were compressed to {column.total_compressed_size:,}, as no text can be"
                raise UserError(f"cannot read {file}: {problem}; make sure that it is what you expect")
            size = min(size, max(1, BATCH_BYTES * rows // max(1, length)))
            if column.has_dictionary_page:
                longest = max(1, _dictionary_bytes(column, file))  # no value is longer
                repeated = longest * column.num_values > ROW_LIMIT and length - longest < 16 * column.num_values
                if path not in names and repeated:
                    packed.add(path)
                else:
                    size = min(size, max(1, ROW_LIMIT * rows // (longest * max(1, column.num_values))))
        before += group.num_rows
    return size, sorted(packed)


def columns_of_group(group: Any, names: list[str]) -> Iterator[Any]:
    """What a row group of a Parquet file says of the columns `names`, of nested ones of each part."""
    for column in map(group.column, range(group.num_columns)):
        if any(column.path_in_schema == name or column.path_in_schema.startswith(f"{name}.") for name in names):
            yield column


def _dictionary_bytes(column: Any, file: File) -> int:
    """The size of a dictionary when it is not compressed, which its page's header says (Thrift's compact protocol)."""
    with file.open("rb") as opened:
        opened.seek(column.dictionary_page_offset)
        header = re.match(rb"\x15\x04\x15([\x80-\xff]{0,4}[\0-\x7f])", opened.read(16), re.DOTALL)
    if not header:
        return column.total_uncompressed_size
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(header[1])) >> 1


def _rows_of_batches(batches: Iterable[Any], file: File) -> Iterator[object]:
    """The rows as Python values, converted in groups of about BATCH_BYTES of text."""
    import numpy as np

    before = 0
    with _arrow_errors(file):
        for batch in batches:
            if batch.nbytes <= min(BATCH_BYTES, ROW_LIMIT) and "dictionary" not in str(batch.schema):
                before += batch.num_rows
                yield from _values(batch)
                continue
            sizes = np.sum([_sizes(column) for column in batch.columns], axis=0)
            if sizes.max(initial=0) > ROW_LIMIT:
                raise too_long(f"row {before + int(np.argmax(sizes > ROW_LIMIT)) + 1:,} of {file}")
            ends = np.cumsum(sizes)
            start = 0
            while start < batch.num_rows:
                end = int(np.searchsorted(ends, ends[start] + BATCH_BYTES, "right"))
                end = min(max(end, start + 1), start + BATCH_ROWS)
                yield from _values(batch.slice(start, end - start))
                start = end
            before += batch.num_rows


def _values(batch: Any) -> list[object]:
    """The rows of a batch as objects, or as their texts where there is only one column of strings."""
    if batch.num_columns == 1 and str(batch.schema.types[0]) in STRINGS:
        values: list[object] = batch.column(0).to_pylist()
        return values
    rows: list[object] = batch.to_pylist()
    return rows


def _sizes(array: Any) -> npt.NDArray[np.int64]:
    """The bytes of text that each row of a pyarrow.Array holds, (rows,)."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import compute

    kind = array.type
    if pa.types.is_dictionary(kind):
        sizes = np.append(_sizes(array.dictionary), 0)  # the last one for rows of None
        return sizes[array.indices.fill_null(len(sizes) - 1).to_numpy(zero_copy_only=False)]
    if pa.types.is_struct(kind):
        return np.sum([_sizes(field) for field in array.flatten()], axis=0, dtype=np.int64) + np.zeros(len(array), int)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        ends = np.append(0, np.cumsum(_sizes(array.values) + 8))
        offsets = array.offsets.to_numpy()
        return ends[offsets[1:]] - ends[offsets[:-1]]
    if str(kind) in ("string", "large_string", "binary", "large_binary"):
        return compute.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if str(kind) == "string_view":
        return _sizes(array.cast("large_string"))
    return np.zeros(len(array), dtype=np.int64)


@contextmanager
def _arrow_errors(file: File) -> Iterator[None]:
    """Turn what goes wrong with a file of pyarrow into a UserError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(str(file), error) from error


def fields_of_schema(schema: Any, text_field: str, file: File) -> Fields:
    """The fields of text in a table with the pyarrow.Schema `schema`."""
    from pyarrow import types

    strings, others = [], []
    for name, kind in zip(schema.names, schema.types, strict=True):
        turn = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else None
        parts = {turn.field(i).name for i in range(turn.num_fields)} if turn and types.is_struct(turn) else set()
        if str(kind) in STRINGS or any(parts.issuperset(keys) for keys in TURNS):
            strings.append(name)
        elif types.is_nested(kind) or types.is_dictionary(kind):
            others.append(name)
    return choose_field(text_field, schema.names, strings, others, str(file))
