"""Parquet files as they are, but for types that only say how values are stored: those become the values' own."""

import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from fedpft.data.sources.errors import BadFileError, one_line, require_different

FILE_BUFFER_BYTES = 1 << 20
"""Of a file that is read in parts: never a whole row group at once."""


def parquet_tables(stream: BinaryIO, rows_at_once: int | None = None) -> Iterator[pa.Table]:
    """Yield a file's rows, all at once or so many at a time.

    Raises:
        BadFileError: no parquet, or two columns of one name.

    """
    how: dict[str, Any] = {} if rows_at_once is None else {"buffer_size": FILE_BUFFER_BYTES, "pre_buffer": False}
    source = pq.ParquetFile(stream if stream.seekable() else io.BytesIO(stream.read()), **how)
    require_different(source.schema_arrow.names, "the file")
    if rows_at_once is None or not source.metadata.num_rows:
        yield _understood(source.read())
        return
    for batch in source.iter_batches(rows_at_once):
        yield _understood(pa.Table.from_batches([batch]).replace_schema_metadata(source.schema_arrow.metadata))


def _understood(table: pa.Table) -> pa.Table:
    """Return a table without the columns of types that `datasets` cannot hold, each named in a warning."""
    fields, columns = [], []
    for field, column in zip(table.schema, map(_plain, table.columns), strict=True):
        if _has_feature(column.type):
            fields.append(field.with_type(column.type))
            columns.append(column)
        else:
            warnings.warn(f"left out column {field.name} of type {column.type}", stacklevel=3)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, table.schema.metadata))


def join_shards(tables: Sequence[pa.Table]) -> tuple[pa.Table, datasets.Features]:
    """Return the rows of all shards, in the order of the first one's columns, and what their types mean.

    Raises:
        BadFileError: other columns, types that have nothing in common, or other class names.

    """
    features = [datasets.Features.from_arrow_schema(table.schema) for table in tables]
    names = tables[0].column_names
    for table, own in zip(tables, features, strict=True):
        if odd := set(names) ^ set(table.column_names):
            raise BadFileError(f"shards with and without a column {min(odd)}")
        for name in names:
            ours, theirs = features[0][name], own[name]
            if isinstance(ours, datasets.ClassLabel) != isinstance(theirs, datasets.ClassLabel) or (
                isinstance(ours, datasets.ClassLabel) and ours.names != theirs.names
            ):
                raise BadFileError(f"shards with other classes in column {name}")
    bare = [table.select(names).replace_schema_metadata(None) for table in tables]
    try:
        joined = pa.concat_tables(bare, promote_options="permissive")
    except pa.ArrowException as error:
        raise BadFileError(f"shards with other types: {one_line(error)}") from error
    guessed = datasets.Features.from_arrow_schema(joined.schema)
    same = {name: features[0].arrow_schema.field(name).type == joined.schema.field(name).type for name in names}
    return joined, datasets.Features({name: (features[0] if same[name] else guessed)[name] for name in names})


def _has_feature(kind: pa.DataType) -> bool:
    try:
        datasets.Features.from_arrow_schema(pa.schema([("column", kind)]))
    except Exception:  # `datasets` has errors of several kinds for what it cannot hold
        return False
    return True


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return categories as their values, and views and run-length codes likewise."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_string_view(kind):
        return column.cast(pa.large_string())
    return column
