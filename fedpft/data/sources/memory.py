"""Data that the caller holds in memory, in place of files: any usual container -> `datasets.Dataset`.

From there on they take the way of rows that were read from files, through the same checks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import datasets
import pandas as pd
import torch
from datasets.table import embed_table_storage
from PIL.Image import Image
from torch.utils.data import DataLoader

from fedpft.data.sources.columns import IMAGE, LABEL, TEXT
from fedpft.data.sources.errors import fail, one_line
from fedpft.data.sources.subsets import subset

MEMORY = "memory://"
"""Of `task.path` and `public.path`: the data are the caller's; behind it stands a digest of their rows."""


@dataclass(frozen=True, kw_only=True)
class GivenData:
    """Rows in memory, as they would have been read from files."""

    splits: Mapping[str, datasets.Dataset]
    """Of the task, by the names that files have: `train`, `validation`; empty: read where `task.path` says."""
    public: datasets.Dataset | None = None
    """None: read where `public.path` says."""

    def split(self, name: str) -> datasets.Dataset:
        """Return one split.

        Raises:
            ConfigError: it was not given.

        """
        if name not in self.splits:
            fail("data", sorted(self.splits), f"with {name}, or task.eval_ratio to hold out a part of train")
        return self.splits[name]


def is_in_memory(path: str | None) -> bool:
    """Whether a path stands for data that the caller has."""
    return path is not None and path.startswith(MEMORY)


def not_given(path: str | None, key: str) -> NoReturn:
    """Refuse a path for data in memory where there are none, e.g. on the command line."""
    fail(key, path, "a hub id or a folder; data in memory are given to fedpft.run(config, data=...) each time")


def as_dataset(table: Any, name: str) -> datasets.Dataset:
    """Return a table's rows, in memory, images as bytes.

    Args:
        table: a `datasets.Dataset`, a DataFrame, a mapping of columns, a torch `Dataset` or `DataLoader` (whose dataset
            counts), or any iterable of rows: mappings, pairs (input, label), or inputs alone. Inputs are texts or PIL
            images; the FM's own processor makes tensors of them.
        name: the argument that errors name, e.g. `data.train`.

    Raises:
        ConfigError: something else, or rows without a common form.

    """
    if isinstance(table, datasets.Dataset):
        dataset = table.with_format(None)
    else:
        try:
            dataset = _converted(table, name)
        except (TypeError, ValueError, KeyError, OverflowError, RuntimeError) as error:
            if type(error).__name__ == "ConfigError":
                raise
            fail(name, f"{type(table).__name__} ({one_line(error)})", "a table of texts or images, and labels")
    long = [column for column, feature in dataset.features.items() if getattr(feature, "dtype", "") == "large_string"]
    for column in long:  # pandas' and polars'; the same rows have the same digest whatever holds them
        dataset = dataset.cast_column(column, datasets.Value("string"))
    if not len(dataset.column_names):
        fail(name, "no column", "rows with an input and a label")
    dataset = subset(dataset, range(len(dataset)))  # rows travel to actors, perhaps without the files behind them
    if not any(isinstance(feature, datasets.Image) for feature in dataset.features.values()):
        return dataset
    encoded = dataset.with_format("arrow")
    return encoded.map(
        embed_table_storage, batched=True, batch_size=256, keep_in_memory=True, features=dataset.features
    ).with_format(None)


def _converted(table: Any, name: str) -> datasets.Dataset:
    if isinstance(table, pd.DataFrame):
        plain = table.astype(dict.fromkeys(table.select_dtypes("category"), str))
        return datasets.Dataset.from_pandas(plain, preserve_index=False)
    if isinstance(table, Mapping):
        return datasets.Dataset.from_dict({column: list(values) for column, values in table.items()})
    if isinstance(table, DataLoader):
        table = table.dataset
    rows = [_row(row, name) for row in _items(table, name)]
    return datasets.Dataset.from_list(rows)


def _items(table: Any, name: str) -> Iterable[Any]:
    if isinstance(table, str | bytes):
        fail(name, table, "rows, no path; files are named in task.path")
    if hasattr(table, "__getitem__") and hasattr(table, "__len__"):  # torch's map-style need no __iter__
        return (table[index] for index in range(len(table)))
    if hasattr(table, "__iter__"):
        return table
    fail(name, type(table).__name__, "a Dataset, a DataFrame, a mapping of columns or an iterable of rows")


def _row(row: Any, name: str) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return {key: _plain(value, name) for key, value in row.items()}
    if isinstance(row, tuple | list) and len(row) == 2:
        return {_kind(row[0], name): row[0], LABEL: _plain(row[1], name)}
    return {_kind(row, name): row}


def _kind(value: Any, name: str) -> str:
    if isinstance(value, str | Image):
        return TEXT if isinstance(value, str) else IMAGE
    allowed = "mappings, pairs (input, label) or inputs; an input is a text or a PIL image, as the FM's processor takes"
    fail(name, f"a row of type {type(value).__name__}", allowed)


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, torch.Tensor):
        if value.ndim:
            fail(
                name, f"a tensor of shape {tuple(value.shape)}", "texts or PIL images: the FM's processor makes tensors"
            )
        return value.item()
    return value
