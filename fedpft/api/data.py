"""Own data in memory -> the settings that describe them, and their rows in the form that files would have given.

data = table                                                # train; task.eval_ratio holds out a part of it
data = {"train": table, "validation": table}                # and "public": texts or images
data = {"clients": [table, ...], "validation": table}       # or {name: table}: one for each client
data = a LightningDataModule                                # its training loaders: one, or one for each client
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import datasets
import lightning as L
import numpy as np

from fedpft.config import Config, ConfigError, TaskConfig
from fedpft.config.checks import require
from fedpft.data.digest import dataset_digest
from fedpft.data.sources.columns import PROMPT, RESPONSE
from fedpft.data.sources.errors import fail
from fedpft.data.sources.memory import MEMORY, GivenData, as_dataset, is_in_memory

CLIENT = "client"
"""Column of the owners where each client's data are given apart."""

TEXT_COLUMNS = (("text", "text_pair"), ("text",), ("sentence1", "sentence2"), ("sentence",))
IMAGE_COLUMNS = ("image", "img")


def own_data(config: Config, data: Any) -> tuple[Config, GivenData]:
    """Return the config of a run on data in memory, and the data.

    `task.path` and `public.path` become `memory://DIGEST`: a run goes on with the same rows alone. A `task` section
    that names no column gets the usual ones. With one table for each client, `federated.num_clients` is their number
    and the partition theirs.

    Args:
        config: settings; `task` may name columns, kind, metrics and limits as for files.
        data: see the module.

    Raises:
        ConfigError: nothing to train on, no table, columns that cannot be guessed, or settings that contradict it.

    """
    tables = _tables(data)
    unknown = sorted(tables.keys() - _names(config.task))
    if unknown or ("train" in tables) == ("clients" in tables):
        fail("data", sorted(tables), "train or clients, and validation, public")
    splits = {name: as_dataset(table, f"data.{name}") for name, table in tables.items() if name not in PARTS}
    if "clients" in tables:
        splits["train"], num_clients = _joined(tables["clients"])
        config = _natural(config, num_clients)
    config = replace(config, task=_described(config.task, splits))
    public = None
    if "public" in tables:
        public = as_dataset(tables["public"], "data.public")
        _require_no_files("public.path", config.public.path)
        path = MEMORY + dataset_digest(public, public.column_names)
        config = replace(config, public=replace(config.public, name="custom", path=path))
    return config, GivenData(splits=splits, public=public)


PARTS = ("clients", "public")
"""Keys of `data` that are no split of the task."""


def _names(task: TaskConfig) -> set[str]:
    from fedpft.data.tasks.table import TASKS

    others = TASKS[task.name].other_eval_splits.values() if task.name in TASKS else ()
    return {"train", *PARTS, task.train_split or "train", task.eval_split or "validation", *others}


def _tables(data: Any) -> dict[str, Any]:
    """Return tables by the names of their splits."""
    if isinstance(data, L.LightningDataModule):
        data.prepare_data()
        data.setup("fit")
        train = data.train_dataloader()
        several = isinstance(train, list | tuple | Mapping)
        return {"clients" if several else "train": train, "validation": data.val_dataloader()}
    if isinstance(data, Mapping):
        return dict(data)
    return {"train": data}


def _joined(clients: Any) -> tuple[datasets.Dataset, int]:
    """Return all clients' rows with a column of their owners, and how many clients there are."""
    named = dict(clients) if isinstance(clients, Mapping) else dict(enumerate(clients))
    require(bool(named), "data.clients", "none", "a list of tables, or a mapping of names and tables")
    parts = {name: as_dataset(table, f"data.clients[{name!r}]") for name, table in named.items()}
    if empty := [name for name, part in parts.items() if not len(part)]:
        fail("data.clients", f"no example of client {empty[0]!r}", "at least 1 of each")
    if taken := [name for name, part in parts.items() if CLIENT in part.column_names]:
        fail(f"data.clients[{taken[0]!r}]", f"a column {CLIENT}", "any other name: it will hold the owner")
    try:
        rows = datasets.concatenate_datasets(list(parts.values()))
    except ValueError as error:
        fail("data.clients", " ".join(str(error).split())[:200], "tables with the same columns and types")
    owners = np.repeat(np.array(list(named)), [len(part) for part in parts.values()])
    return rows.add_column(CLIENT, owners.tolist()), len(named)


def _natural(config: Config, num_clients: int) -> Config:
    federated = config.federated
    kind, column = federated.partition.kind, federated.partition.column
    require(kind in ("iid", "natural"), "federated.partition.kind", kind, "natural, as data.clients says who owns what")
    require(column in (None, CLIENT), "federated.partition.column", column, f"null or {CLIENT} with data.clients")
    partition = replace(federated.partition, kind="natural", column=CLIENT)
    drawn = min(federated.clients_per_round, num_clients)
    return replace(
        config,
        federated=replace(federated, num_clients=num_clients, clients_per_round=drawn, partition=partition),
    )


def _described(task: TaskConfig, splits: Mapping[str, datasets.Dataset]) -> TaskConfig:
    """Return the `task` section of these rows; with a name and without columns, that of a table's row stays."""
    _require_no_files("task.path", task.path)
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(splits):
        digest.update(f"{name} {dataset_digest(splits[name], splits[name].column_names)} ".encode())
    path = MEMORY + digest.hexdigest()
    if task.name not in ("custom", TaskConfig().name):
        return replace(task, path=path)
    columns: dict[str, Any] = {}
    if not (task.text_columns or task.image_column or task.response_column):
        columns = _usual_columns(splits.get(task.train_split or "train", next(iter(splits.values()))))
    return replace(task, name="custom", path=path, **columns)


def _usual_columns(train: datasets.Dataset) -> dict[str, Any]:
    present = set(train.column_names)
    if {PROMPT, RESPONSE} <= present:
        return {"kind": "causal_lm", "prompt_column": PROMPT, "response_column": RESPONSE}
    for columns in TEXT_COLUMNS:
        if present.issuperset(columns):
            return {"text_columns": columns}
    for column in IMAGE_COLUMNS:
        if column in present:
            return {"image_column": column}
    usual = ", ".join([*(" and ".join(columns) for columns in TEXT_COLUMNS), *IMAGE_COLUMNS])
    raise ConfigError(
        f"data.train: found columns {', '.join(train.column_names)}, allowed: one of {usual}, prompt and response, or "
        "others that task.text_columns, task.image_column or task.response_column name"
    )


def _require_no_files(key: str, path: str | None) -> None:
    if path is not None and not is_in_memory(path):
        raise ConfigError(f"{key}: found {path!r}, allowed: null beside data in memory")
