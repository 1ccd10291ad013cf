"""How canaries get into a run's data; see `fedpft.data.canaries`."""

from dataclasses import replace
from typing import Any

import datasets
import numpy as np

from fedpft.config import Config
from fedpft.data.canaries import Canaries
from fedpft.data.collate import rows
from fedpft.data.datamodule import FederatedData
from fedpft.data.partition import Partition
from fedpft.data.sources.columns import LABEL
from fedpft.data.sources.errors import fail
from fedpft.seeding import numpy_rng

_TEMPLATES = 16
"""Examples of which the longest lends a canary its length."""


def with_canaries(data: FederatedData, config: Config) -> FederatedData:
    """Return the data with canaries in them, as many as the config asks for; what was there keeps its rows.

    A function of data and config, so that a run that goes on and an audit find the same ones.

    Raises:
        ConfigError: data of which no canary can be made.

    """
    number = config.privacy.canaries
    if not number:
        return data
    are_clients = config.privacy.kind == "client"
    _check(data, number, are_clients)
    rng = numpy_rng(config.client_seed, "canaries")
    owners = rng.choice(data.partition.num_clients, size=number, replace=not are_clients)
    planted = rng.random(number) < 0.5
    made = [_canary(data, rng) for _ in range(number)]
    examples = datasets.Dataset.from_list(made, features=data.train.features)
    canaries = Canaries(examples, planted, owners, len(data.train), are_clients)
    place = _whole_clients if are_clients else _more_examples
    return replace(
        data,
        train=datasets.concatenate_datasets([data.train, examples]),
        partition=place(data.partition, canaries),
        canaries=canaries,
    )


def _check(data: FederatedData, number: int, are_clients: bool) -> None:
    key = "privacy.canaries"
    if data.modality != "text" or data.kind == "regression":
        fail(key, number, f"0 for {data.modality} data of kind {data.kind}: canaries are texts with a label or none")
    if data.shared is not None:
        fail(key, number, "0 with task.data = shared: files on disk hold no canaries")
    if are_clients and number >= data.partition.num_clients:
        fail(key, number, f"fewer than the {data.partition.num_clients} clients, because each is one of them")


def _canary(data: FederatedData, rng: np.random.Generator) -> dict[str, Any]:
    """Return a row with the frame of an example, random tokens in it, and in classification a random label."""
    assert data.tokenizer is not None, "checked before"
    templates = rows(data.train, rng.integers(len(data.train), size=_TEMPLATES))
    row: dict[str, Any] = max(templates, key=lambda template: len(template["input_ids"]))
    words = np.setdiff1d(np.arange(len(data.tokenizer)), data.tokenizer.all_special_ids)
    ids = list(row["input_ids"])
    ids[1:-1] = rng.choice(words, size=max(0, len(ids) - 2)).tolist()
    label = {LABEL: int(rng.integers(len(data.label_names)))} if data.kind == "classification" else {}
    return {**row, "input_ids": ids, **label}


def _whole_clients(partition: Partition, canaries: Canaries) -> Partition:
    """Return a partition in which a canary's owner has that one example, as often as it had examples."""
    order = partition.order.copy()
    for number, client in enumerate(canaries.owners.tolist()):
        order[partition.offsets[client] : partition.offsets[client + 1]] = canaries.first_row + number
    return Partition(order, partition.offsets)


def _more_examples(partition: Partition, canaries: Canaries) -> Partition:
    """Return a partition in which the owners of planted canaries have these besides, behind their own."""
    numbers = np.flatnonzero(canaries.planted)
    owners = canaries.owners[numbers]
    order = np.insert(partition.order, partition.offsets[owners + 1], canaries.first_row + numbers)
    return Partition.of_sizes(order, partition.sizes + np.bincount(owners, minlength=partition.num_clients))
