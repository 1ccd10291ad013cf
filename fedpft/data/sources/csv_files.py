"""csv and tsv files, every field a string as it is written: types are for whoever wants a number.

Guessed types would depend on the rows that happen to be read together, and turn `001`, `09.50` or `NA` into others.
"""

import csv
import io
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from fedpft.data.sources.errors import BadFileError, require_different

_LARGEST_FIELD = 1 << 30
"""Characters; the library's own limit of 128 KiB is shorter than many a document."""


def csv_tables(stream: BinaryIO, rows_at_once: int, delimiter: str = ",") -> Iterator[pa.Table]:
    """Yield a file's rows as tables of strings, at least one, perhaps empty.

    UTF-8 with or without a byte order mark, any line ends, quotes as in RFC 4180; blank lines are no rows, and a header
    without a name is called as pandas does it, `Unnamed: 0`.

    Raises:
        BadFileError: no header or one with a name twice, a row with more or fewer fields, a quote that is not closed,
            no UTF-8.

    """
    csv.field_size_limit(_LARGEST_FIELD)
    reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    try:
        header = next((row for row in reader if row), None)
        if header is None:
            raise BadFileError("no header")
        names = [name or f"Unnamed: {column}" for column, name in enumerate(header)]
        require_different(names, "the header")
        fields = _rows(reader, header)
        while rows := list(islice(fields, rows_at_once)):
            yield _table(names, rows)
        yield _table(names, [])
    except csv.Error as error:
        raise BadFileError(f"line {reader.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise BadFileError(f"after line {reader.line_num}: no UTF-8 ({error.reason})") from error


def _rows(reader: Any, header: list[str]) -> Iterator[list[str]]:
    last = reader.line_num
    for row in reader:
        first, last = last + 1, reader.line_num
        if len(row) == len(header):
            yield row
        elif row:
            shown = ", ".join(header[:8])
            raise BadFileError(f"line {first}: a row of {len(row)} fields, but a header of {len(header)}: {shown}")


def _table(names: list[str], rows: list[list[str]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return pa.Table.from_arrays([pa.array(list(values), pa.string()) for values in columns], names=names)
