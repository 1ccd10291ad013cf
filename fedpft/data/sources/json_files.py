"""JSON files, every value as it is written: a string that looks like a date or a number stays a string.

A file holds an object a line, an array of objects, or one object of columns, each an array of the same length.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, BinaryIO

import datasets
import pyarrow as pa

from fedpft.data.sources.errors import BadFileError

_LARGEST_INTEGER, _LARGEST_EXACT = 1 << 63, 1 << 53
"""Of int64, and of those beside floats."""
_SCALARS: Mapping[frozenset[type], pa.DataType] = {
    frozenset(): pa.null(),
    frozenset({str}): pa.string(),
    frozenset({bool}): pa.bool_(),
    frozenset({int}): pa.int64(),
    frozenset({float}): pa.float64(),
    frozenset({int, float}): pa.float64(),
}
"""What a column holds, nulls aside -> its type; one that holds anything else stays JSON, `datasets.Json`."""


def json_tables(stream: BinaryIO, rows_at_once: int) -> Iterator[pa.Table]:
    """Yield a file's rows as tables, each with types of its own: see :func:`join_tables`.

    Raises:
        BadFileError: no JSON, no objects, a key twice in one object, no UTF-8.

    """
    try:
        rows = _rows(io.TextIOWrapper(stream, "utf-8-sig"))
        while batch := list(islice(rows, rows_at_once)):
            names = list(dict.fromkeys(name for row in batch for name in row))
            columns = [_array([row.get(name) for row in batch]) for name in names]
            yield pa.Table.from_arrays(columns, names=names)
    except UnicodeDecodeError as error:
        raise BadFileError(f"no UTF-8 ({error.reason})") from error
    except UnicodeEncodeError as error:
        raise BadFileError(f"a text that is no Unicode ({error.reason})") from error
    except RecursionError as error:
        raise BadFileError("objects too deep in each other") from error


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of all tables; a column's type follows from all that it holds, a row without it has a null."""
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    return pa.table({name: _join([_column(table, name) for table in tables]) for name in names})


def _rows(text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    """Yield the objects; of JSON lines no more is held than a line."""
    lines = ((number, line) for number, line in enumerate(text, 1) if line.strip())
    head = list(islice(lines, 2))
    if not head:
        return
    try:
        first = _parse(head[0][1])
    except BadFileError:
        first = None
    if isinstance(first, dict) and (len(head) == 2 or not _columns(first)):
        for number, line in chain(head, lines):
            yield _object(_parse(line, f"line {number}: "), f"line {number}: ")
    else:
        yield from _rows_of_document(_parse("".join(line for _, line in head) + text.read()))


def _rows_of_document(document: object) -> Iterator[dict[str, Any]]:
    if isinstance(document, list):
        for number, row in enumerate(document):
            yield _object(row, f"element {number}: ")
    elif isinstance(document, dict) and (columns := _columns(document)):
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    elif isinstance(document, dict):
        yield document
    else:
        _object(document, "")


def _columns(document: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the object if it holds columns, else nothing."""
    values = list(document.values())
    are_columns = all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1
    return document if are_columns else {}


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadFileError(f"{where}no object but {json.dumps(value)[:40]}")
    return value


def _parse(text: str, where: str = "") -> object:
    try:
        return json.loads(text.strip(), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = f"{where}column {error.colno}" if where else f"line {error.lineno}, column {error.colno}"
        raise BadFileError(f"{place}: {error.msg}") from error
    except ValueError as error:
        raise BadFileError(f"{where}{error}") from error


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in made if names.count(name) > 1)!r} twice in one object")
    return made


def _array(values: list[Any]) -> pa.Array:
    kinds = frozenset(map(type, values)) - {type(None)}
    largest = _LARGEST_EXACT if float in kinds else _LARGEST_INTEGER
    fits = int not in kinds or all(-largest <= value < largest for value in values if type(value) is int)
    if kinds in _SCALARS and fits:
        return pa.array(values, _SCALARS[kinds])
    encoded = [None if value is None else json.dumps(value) for value in values]
    return pa.ExtensionArray.from_storage(datasets.Json.pa_type, pa.array(encoded, pa.string()))


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table.column(name) if name in table.column_names else pa.chunked_array([pa.nulls(table.num_rows)])


def _join(parts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Return the parts as one; ints and floats are floats, what is of several types is JSON."""
    kinds = {part.type for part in parts} - {pa.null()}
    if kinds == {pa.int64(), pa.float64()}:
        kinds = {pa.float64()}
    if len(kinds) > 1 or kinds == {datasets.Json.pa_type}:
        return _as_json(parts)
    kind = kinds.pop() if kinds else pa.null()
    try:
        return pa.chunked_array([chunk.cast(kind) for part in parts for chunk in part.chunks], kind)
    except pa.ArrowInvalid:  # an integer that no float equals
        return _as_json(parts)


def _as_json(parts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Return the values of any types as JSON."""
    chunks = []
    for part in parts:
        if part.type == datasets.Json.pa_type:
            chunks += part.chunks
        else:
            encoded = [None if value is None else json.dumps(value) for value in part.to_pylist()]
            chunks.append(pa.ExtensionArray.from_storage(datasets.Json.pa_type, pa.array(encoded, pa.string())))
    return pa.chunked_array(chunks, datasets.Json.pa_type)
