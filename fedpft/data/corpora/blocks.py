"""Blocks of neighbouring rows, drawn from files that no memory has to hold.

Parquet files are read at random: a draw takes blocks from some 256 places all over the corpus, whatever its size, and
decodes only the row groups that hold them. Other formats can only be read from their beginning: a draw takes the files
in a random order and mixes their blocks in a buffer, so it sees as many rows as it takes, and those of the buffer.

What is drawn depends on the files, their order and the generator: neither on the machine nor on where the files are.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, groupby, islice
from typing import Protocol

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedpft.data.sources.errors import fail, one_line
from fedpft.data.sources.files import Files
from fedpft.data.sources.rows import file_tables

NUM_PLACES = 256
"""Blocks in a large draw: more mix better, but each may cost a row group."""
BYTES_READ_AHEAD = 64 << 20
"""Blocks are fetched in batches of about so many bytes, each row group once a batch."""
HEAD_BYTES = 128 << 20
"""A block can only be reached through the rows before it in its row group: those beyond so much come last."""
BYTES_DECODED = 16 << 20
"""Of a row group that is larger, about so much is decoded at a time."""
FILE_BUFFER_BYTES = 1 << 20
FOOTERS_AT_ONCE = 16
SEQUENTIAL_BLOCK_ROWS = 64
BUFFERED_BLOCKS = 256


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one file."""

    rows: pa.Table
    file: str
    first_row: int

    def origin(self, row: int) -> str:
        """Say where the block's row is from, for errors."""
        return f"{self.file}, row {self.first_row + row}"


class RowFiles(Protocol):
    """Files as a source of blocks."""

    column_names: list[str]
    """Of the first file."""
    schema: pa.Schema
    """Of the first file; of a format without one, as its first rows have it."""

    def blocks(self, columns: Sequence[str], num_bytes: float, rng: np.random.Generator) -> Iterator[Block]:
        """Yield blocks of these columns, each row at most once, in a random order, until there are no more.

        `num_bytes` is about what the caller is going to take, at least; it decides how large the blocks are.

        Raises:
            ConfigError: a file that cannot be read, or has no such column.

        """


def open_rows(files: Files, key: str) -> RowFiles:
    """Open files for drawing; errors name the config key.

    Raises:
        ConfigError: a file that cannot be read, shards with different columns.

    """
    return ParquetRows(files.paths, key) if files.builder == "parquet" else SequentialRows(files, key)


@dataclass(frozen=True)
class _RowGroup:
    file: int
    index: int
    """In its file."""
    first_row: int
    """In its file."""
    num_rows: int


@dataclass(frozen=True, order=True)
class _Place:
    """Where a block is; a block never crosses the end of its row group."""

    file: int
    group: int
    start: int
    """In its row group."""
    first_row: int
    """In its file."""


class ParquetRows:
    """Parquet files, here or on a remote file system; only their footers are read before a block is wanted."""

    def __init__(self, paths: Sequence[str], key: str) -> None:
        """Read the footers.

        Raises:
            ConfigError: a file that is no parquet, or lacks a column of the first one; no rows in any.

        """
        self._paths, self._key = paths, key
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:  # of remote files, each takes a round trip or two
            footers = list(pool.map(self._footer, paths))
        self.schema = footers[0].schema.to_arrow_schema()
        self.column_names = list(self.schema.names)
        for path, footer in zip(paths, footers, strict=True):
            if missing := set(self.column_names) - set(footer.schema.to_arrow_schema().names):
                fail(key, f"no column {min(missing)} in {path}", f"the columns of {paths[0]}")
        self._groups = [group for file, footer in enumerate(footers) for group in _row_groups(file, footer)]
        num_bytes = sum(footer.row_group(i).total_byte_size for footer in footers for i in range(footer.num_row_groups))
        num_rows = sum(group.num_rows for group in self._groups)
        if num_rows == 0:
            fail(key, f"no rows in {', '.join(paths[:3])}", "at least 1")
        self.row_bytes = max(1.0, num_bytes / num_rows)
        """Mean size of a row, decompressed."""

    def blocks(
        self, columns: Sequence[str], num_bytes: float, rng: np.random.Generator, min_block_bytes: int = 16 << 10
    ) -> Iterator[Block]:
        """See :class:`RowFiles`. Blocks have a `NUM_PLACES`-th of `num_bytes`, but at least `min_block_bytes`."""
        block_rows = max(1, round(max(num_bytes / NUM_PLACES, min_block_bytes) / self.row_bytes))
        offsets = np.cumsum([0] + [-(-group.num_rows // block_rows) for group in self._groups])
        order = self._heads_first(rng.permutation(offsets[-1]), offsets, block_rows)
        expected, most = (1 + int(n / (block_rows * self.row_bytes)) for n in (num_bytes, BYTES_READ_AHEAD))
        start, size = 0, min(expected, most)
        while start < len(order):
            places = [self._place(int(number), offsets, block_rows) for number in order[start : start + size]]
            yield from self._fetch(places, block_rows, list(columns))
            start += size
            size = min(1 + expected // 8, most)  # more than expected: a few at a time

    def _heads_first(self, numbers: np.ndarray, offsets: np.ndarray, block_rows: int) -> np.ndarray:
        start = (numbers - offsets[np.searchsorted(offsets, numbers, side="right") - 1]) * block_rows
        near = start * self.row_bytes < HEAD_BYTES
        return np.concatenate([numbers[near], numbers[~near]])

    def _place(self, number: int, offsets: np.ndarray, block_rows: int) -> _Place:
        """Return the block with a number among all blocks; `offsets`: numbers of each row group's first."""
        owner = int(np.searchsorted(offsets, number, side="right")) - 1
        group, start = self._groups[owner], (number - int(offsets[owner])) * block_rows
        return _Place(group.file, group.index, start, group.first_row + start)

    def _fetch(self, places: Sequence[_Place], block_rows: int, columns: list[str]) -> list[Block]:
        """Return the blocks in the order of `places`; they are read in the order of the files."""
        found: dict[_Place, Block] = {}
        for file, in_file in groupby(sorted(places), key=lambda place: place.file):
            with self._reading(self._paths[file]) as source:
                for group, members in groupby(in_file, key=lambda place: place.group):
                    for place, rows in self._decode(source, group, list(members), block_rows, columns):
                        found[place] = Block(rows, self._paths[file], place.first_row)
        return [found[place] for place in places]

    def _decode(
        self, source: pq.ParquetFile, group: int, places: Sequence[_Place], block_rows: int, columns: list[str]
    ) -> Iterator[tuple[_Place, pa.Table]]:
        """Yield the blocks of one row group; rows after the last are not decoded."""
        rows_at_once = block_rows * max(1, int(BYTES_DECODED / (block_rows * self.row_bytes)))
        batches = source.iter_batches(rows_at_once, row_groups=[group], columns=columns)
        for first, batch in zip(count(step=rows_at_once), batches, strict=False):
            for place in places:
                if 0 <= (start := place.start - first) < rows_at_once:
                    rows = range(start, min(start + block_rows, batch.num_rows))
                    yield place, pa.Table.from_batches([batch.take(pa.array(rows))])  # a copy: the batch can go
            if places[-1].start < first + rows_at_once:
                return

    def _footer(self, path: str) -> pq.FileMetaData:
        with self._reading(path) as source:
            return source.metadata

    @contextmanager
    def _reading(self, path: str) -> Iterator[pq.ParquetFile]:
        """Open a file; what goes wrong while it is read is a ConfigError that names it."""
        try:
            filesystem, inner = fsspec.core.url_to_fs(path)
            options = {"buffer_size": FILE_BUFFER_BYTES, "pre_buffer": False}  # never a whole row group in memory
            with pq.ParquetFile(inner, filesystem=filesystem, **options) as source:
                yield source
        except Exception as error:  # a file system's or Arrow's own
            fail(self._key, f"{path} ({one_line(error)})", "readable parquet files")


def _row_groups(file: int, footer: pq.FileMetaData) -> Iterator[_RowGroup]:
    first_row = 0
    for index in range(footer.num_row_groups):
        num_rows = footer.row_group(index).num_rows
        yield _RowGroup(file, index, first_row, num_rows)
        first_row += num_rows


class SequentialRows:
    """Files that can only be read from their beginning (csv, json, text; compressed or not), block by block."""

    def __init__(self, files: Files, key: str) -> None:
        """Read the first rows of the first file.

        Raises:
            ConfigError: they cannot be read, or there are none.

        """
        self._files, self._key = files, key
        first = next(self._in_sequence(files.paths[0]), None)
        if first is None:
            fail(key, f"no rows in {files.paths[0]}", "at least 1")
        self.schema = first.rows.schema
        self.column_names = first.rows.column_names

    def blocks(self, columns: Sequence[str], num_bytes: float, rng: np.random.Generator) -> Iterator[Block]:
        """See :class:`RowFiles`. Blocks have `SEQUENTIAL_BLOCK_ROWS` rows."""
        paths = [self._files.paths[index] for index in rng.permutation(len(self._files.paths))]
        in_sequence = (block for path in paths for block in self._in_sequence(path, columns))
        buffer = list(islice(in_sequence, BUFFERED_BLOCKS))
        for block in in_sequence:
            slot = int(rng.integers(len(buffer)))
            yield buffer[slot]
            buffer[slot] = block
        for slot in rng.permutation(len(buffer)):
            yield buffer[slot]

    def _in_sequence(self, path: str, columns: Sequence[str] | None = None) -> Iterator[Block]:
        for first_row, rows in self._tables(path):
            if columns is not None and (missing := set(columns) - set(rows.column_names)):
                fail(self._key, f"no column {min(missing)} in {path}", f"the columns of {self._files.paths[0]}")
            yield Block(rows if columns is None else rows.select(columns), path, first_row)

    def _tables(self, path: str) -> Iterator[tuple[int, pa.Table]]:
        builder = self._files.builder
        assert builder is not None
        first_row = 0
        for table in file_tables(path, builder, self._key, SEQUENTIAL_BLOCK_ROWS):
            if table.num_rows:
                yield first_row, table
                first_row += table.num_rows
