"""Rows of the files that `fedpft.data.sources.files` finds, read whole: in memory, images as bytes.

In memory because a task's rows travel to Ray actors, perhaps on machines without these files, and nowhere else: a
cache on disk would keep private rows after the run, and give those of yesterday where a file was replaced. Who wants
that nevertheless, for rows that no memory holds, reads them inside `fedpft.data.sources.on_disk.rows_on_disk`. A public
corpus too large for memory is drawn from its files, block by block: `fedpft.data.corpora.blocks`.
"""

import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol
from uuid import uuid4

import datasets
import fsspec
import numpy as np
import pyarrow as pa

from fedpft.data.sources.columns import IMAGE, LABEL
from fedpft.data.sources.csv_files import csv_tables
from fedpft.data.sources.errors import BadFileError, fail, hub_error, one_line
from fedpft.data.sources.files import BUILDERS, IMAGE_FOLDER, SAVED, Files, find_local
from fedpft.data.sources.image_folders import FILE_NAME, class_name, find_images, warn_of_left_out
from fedpft.data.sources.json_files import join_tables, json_tables
from fedpft.data.sources.mapped import remapped
from fedpft.data.sources.on_disk import ROWS_OF_BATCH, held, is_on_disk
from fedpft.data.sources.parquet_files import join_shards, parquet_tables
from fedpft.data.sources.subsets import subset
from fedpft.hub import hub_or_cache

_ROWS_AT_ONCE = 10_000
_PANDAS_INDEX = "__index_level_0__"
"""The column that is made of the fields beyond the header's."""
_TEXT_LINES = "text"
"""The column of files that hold a text a line."""
_ALLOWED = {
    "csv": 'UTF-8 with a header, as many fields in each row, and quotes around fields with a comma, line end or "',
    "tsv": 'UTF-8 with a header, as many fields in each row, and quotes around fields with a tab, line end or "',
    "json": "UTF-8 with an object a line, or an array of objects",
    "text": "UTF-8 text",
    "parquet": "readable parquet files",
    SAVED: "what save_to_disk wrote",
}


class TableReader(Protocol):
    """Reads a file from its beginning."""

    def __call__(self, stream: BinaryIO, rows_at_once: int) -> Iterator[pa.Table]:
        """Yield the rows in tables; BadFileError says what is wrong within the file."""


def text_tables(stream: BinaryIO, rows_at_once: int) -> Iterator[pa.Table]:
    """Yield the lines of a file as rows of `text`.

    Raises:
        BadFileError: no UTF-8.

    """
    lines, batch = io.TextIOWrapper(stream, "utf-8-sig"), []
    try:
        for line in lines:
            batch.append(line.rstrip("\n"))
            if len(batch) == rows_at_once:
                yield pa.table({_TEXT_LINES: pa.array(batch, pa.string())})
                batch = []
    except UnicodeDecodeError as error:
        raise BadFileError(f"no UTF-8 ({error.reason})") from error
    yield pa.table({_TEXT_LINES: pa.array(batch, pa.string())})


READERS: dict[str, TableReader] = {
    "csv": csv_tables,
    "tsv": partial(csv_tables, delimiter="\t"),
    "json": json_tables,
    "text": text_tables,
}


def file_tables(path: str, builder: str, key: str, rows_at_once: int = _ROWS_AT_ONCE) -> Iterator[pa.Table]:
    """Yield a file's rows in tables, decompressed; errors name it and the config key.

    Raises:
        ConfigError: a file that cannot be read.

    """
    try:
        with fsspec.open(path, "rb", compression="infer") as stream:
            if builder == "parquet":
                yield from parquet_tables(stream, rows_at_once if is_on_disk() else None)
            else:
                yield from READERS[builder](stream, rows_at_once)
    except Exception as error:  # a reader's, a file system's, a decompressor's or Arrow's own
        _refuse(path, error, builder, key)


def load_local(path: str, split: str, key: str) -> datasets.Dataset:
    """Read one split of what :func:`fedpft.data.sources.files.find_local` finds.

    Raises:
        ConfigError: as there, or a file that cannot be read.

    """
    return read_whole(find_local(path, split, key), key)


def load_hub(
    path: str,
    config_name: str | None,
    split: str,
    key: str,
    hint: str = "",
    *,
    revision: str | None = None,
    keep_in_memory: bool | None = None,
) -> datasets.Dataset:
    """Download one split of a hub data set; not kept in memory, its rows are read from disk when they are needed.

    Without a revision it is the newest one; without a word about memory, rows are held as all others are.

    Raises:
        ConfigError: hub unreachable, or no such data set, configuration or split; `hint` says what else it may need.

    """
    in_memory = not is_on_disk() if keep_in_memory is None else keep_in_memory
    load = partial(datasets.load_dataset, path, config_name, split=split, revision=revision, keep_in_memory=in_memory)
    try:
        with hub_or_cache(path, "dataset"):
            dataset = load()
            if dataset.info.builder_name != "csv" or datasets.ClassLabel in map(type, dataset.features.values()):
                return remapped(dataset)
            if _PANDAS_INDEX not in dataset.column_names:  # types were guessed: once more, as written
                written = datasets.Features(dict.fromkeys(dataset.column_names, datasets.Value("string")))
                return remapped(load(features=written, na_filter=False))
    except Exception as error:  # the hub client raises errors of four libraries; the user can act on all alike
        raise hub_error(path, config_name, split, key, hint, error) from error
    fail(key, f"{path}, csv on the hub with rows of more fields than the header", _ALLOWED["csv"])


def read_whole(files: Files, key: str, *, in_memory: bool | None = None) -> datasets.Dataset:
    """Read local files into memory; only of what `save_to_disk` wrote, the rows may stay on disk until they are needed.

    Raises:
        ConfigError: a file that cannot be read, shards with different columns, no rows.

    """
    assert files.builder is not None
    if files.builder == IMAGE_FOLDER:
        return _read_image_folder(files, key)
    if files.builder == SAVED:
        return _load_saved(files.folder, key, not is_on_disk() if in_memory is None else in_memory)
    tables = {path: held(file_tables(path, files.builder, key)) for path in files.paths}
    try:
        return _dataset(tables, files.builder)
    except Exception as error:  # Arrow's and datasets' own
        shown = files.paths[0] if len(files.paths) == 1 else f"{files.paths[0]} and {len(files.paths) - 1} more"
        _refuse(shown, error, files.builder, key)


def read_images(chosen: Sequence[str], folder: Files) -> datasets.Dataset:
    """Read chosen images of an image folder into memory: `image`, encoded, and `label` where all are in class folders.

    Labels are the numbers of the class folders.
    """
    root = Path(folder.folder)
    names = [class_name(Path(path), root) for path in folder.paths]
    classes = sorted({name for name in names if name is not None})
    features = datasets.Features({IMAGE: datasets.Image()})
    if None not in names:
        features[LABEL] = datasets.ClassLabel(names=classes)

    def table(paths: Sequence[str]) -> pa.Table:
        columns: dict[str, list[Any]] = {IMAGE: [_encoded(Path(path), root) for path in paths]}
        if LABEL in features:
            columns[LABEL] = [class_name(Path(path), root) for path in paths]
        return datasets.Dataset.from_dict(columns, features=features).data.table

    at_once = ROWS_OF_BATCH if is_on_disk() else max(1, len(chosen))
    tables = held(table(chosen[first : first + at_once]) for first in range(0, max(1, len(chosen)), at_once))
    return _dataset_of(pa.concat_tables(tables), datasets.DatasetInfo(features=features), IMAGE_FOLDER)


def _read_image_folder(files: Files, key: str) -> datasets.Dataset:
    root = Path(files.folder)
    found = find_images(root, key)
    images = read_images(files.paths, files)
    if not found.tables:
        warn_of_left_out(found, (), root)
        return images
    tables, listed = [], []
    for path in found.tables:
        table = read_whole(Files(builder=BUILDERS[path.suffix.lower()], paths=(str(path),), num_bytes=0), key)
        if FILE_NAME not in table.column_names:
            fail(key, f"{path} with the columns {', '.join(table.column_names)}", f"a column {FILE_NAME}")
        tables.append(table.remove_columns([name for name in (FILE_NAME, IMAGE) if name in table.column_names]))
        listed += [str(path.parent / str(name)) for name in table[FILE_NAME][:]]
    rows = {path: row for row, path in enumerate(files.paths)}
    if missing := [path for path in listed if path not in rows]:
        fail(key, f"no image {missing[0]}, which the {FILE_NAME} of a table names", "images that are there")
    warn_of_left_out(found, [Path(path) for path in files.paths if path not in set(listed)], root)
    order = np.argsort(np.array(listed), kind="stable")
    described = subset(datasets.concatenate_datasets(tables), order)
    chosen = subset(images, [rows[listed[row]] for row in order])
    chosen = chosen.remove_columns([name for name in chosen.column_names if name in described.column_names])
    return _named(datasets.concatenate_datasets([chosen, described], axis=1), tables[0].info.builder_name)


def _encoded(path: Path, root: Path) -> dict[str, object]:
    """Return a file as `datasets.Image` stores it; the path is for messages."""
    return {"bytes": path.read_bytes(), "path": str(path.relative_to(root.parent))}


def _load_saved(folder: str, key: str, in_memory: bool) -> datasets.Dataset:
    try:
        saved = datasets.load_from_disk(folder, keep_in_memory=in_memory).with_format(None)
        return _named(remapped(saved), SAVED)
    except Exception as error:  # whatever `datasets` says to files that it did not write
        _refuse(folder, error, SAVED, key)


def _dataset(tables: dict[str, list[pa.Table]], builder: str) -> datasets.Dataset:
    """Return the rows of all files as one data set."""
    features, every = None, [table for parts in tables.values() for table in parts]
    if builder == "parquet":
        table, features = join_shards(every)
    elif builder == "json":
        table = join_tables(every)
    else:
        names = every[0].column_names
        for path, parts in tables.items():
            if odd := set(names) ^ set(parts[0].column_names):
                raise BadFileError(f"a column {min(odd)} in {next(iter(tables))} or {path}, but not in both")
        table = pa.concat_tables([part.select(names) for part in every])
    if table.num_rows == 0:
        raise BadFileError("no rows")
    info = datasets.DatasetInfo(features=features or datasets.Features.from_arrow_schema(table.schema))
    return _dataset_of(table, info, builder)


def _dataset_of(table: pa.Table, info: datasets.DatasetInfo, builder: str) -> datasets.Dataset:
    name = uuid4().hex if is_on_disk() else None  # else it is made of all the rows
    return _named(datasets.Dataset(table.replace_schema_metadata(None), info=info, fingerprint=name), builder)


def _named(dataset: datasets.Dataset, builder: str | None) -> datasets.Dataset:
    dataset.info.builder_name = builder
    return dataset


def _refuse(path: str, error: Exception, builder: str, key: str) -> NoReturn:
    reason = (
        one_line(error) if isinstance(error, BadFileError | OSError) else f"{type(error).__name__}: {one_line(error)}"
    )
    fail(key, f"{path} ({reason})", _ALLOWED[builder])
