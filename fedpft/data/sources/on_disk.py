"""Where rows are kept while they are read and prepared: in memory, or in files of a folder, mapped.

Inside :func:`rows_on_disk` whatever reads, cuts or tokenises rows writes its result there, batch by batch, and goes on
with a view of the file. The rows are the same ones: only who holds them differs.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from pathlib import Path
from uuid import uuid4

import datasets
import pyarrow as pa

from fedpft.data.sources.mapped import mapped_table, remapped

ROWS_OF_BATCH = 1000
"""In the files, as `datasets` writes them: a row is found through its batch."""

_folder: ContextVar[Path | None] = ContextVar("rows_on_disk", default=None)


@contextmanager
def rows_on_disk(folder: Path) -> Iterator[None]:
    """Keep in files of this folder what is read, cut or tokenised inside; the folder is the caller's to remove."""
    before = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(before)


def is_on_disk() -> bool:
    """Whether rows are kept in files here."""
    return _folder.get() is not None


def kept(make: Callable[..., datasets.Dataset], *arguments: object, **settings: object) -> datasets.Dataset:
    """Return what a data set's method, `map` or `flatten_indices`, makes, and keep it where rows are kept.

    In files the fingerprint is always the same: it stands in them, and equal rows are to make equal files.
    """
    folder = _folder.get()
    if folder is None:
        return make(*arguments, **settings, keep_in_memory=True)
    place = {"cache_file_name": str(_new_file(folder)), "new_fingerprint": "rows"}
    return remapped(make(*arguments, **settings, **place))


def held(tables: Iterable[pa.Table]) -> list[pa.Table]:
    """Return the tables, or, where rows are kept in files, as few as their types allow with the same rows."""
    folder = _folder.get()
    if folder is None:
        return [*tables]
    return [_written(folder, schema, alike) for schema, alike in groupby(tables, key=lambda table: table.schema)]


def _written(folder: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> pa.Table:
    path = str(_new_file(folder))
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for table in tables:
            writer.write_table(table, max_chunksize=ROWS_OF_BATCH)
    return mapped_table(path)


def _new_file(folder: Path) -> Path:
    return folder / f"{uuid4().hex}.arrow"
