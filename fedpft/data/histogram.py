"""Who owns what: a partition as a table of counts."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fedpft.data.datamodule import FederatedData

NUM_INTERVALS = 5
"""In which a partition of numbers is shown."""


def partition_table(data: FederatedData) -> dict[str, Any]:
    """Return what is listed of a partition, as JSON.

    Returns:
        `label_names`: L words; `num_clients`; `label_histogram`: (clients, L), how many examples of each a client owns,
        of the first `MAX_LISTED_CLIENTS`.

    """
    _, names = label_groups(data)
    listed = next(label_histograms(data))
    return {"label_names": names, "num_clients": data.partition.num_clients, "label_histogram": listed.tolist()}


def label_histograms(data: FederatedData) -> Iterator[np.ndarray]:
    """Yield how many examples of each group every client owns, (clients, L), block by block; see `label_groups`."""
    groups, names = label_groups(data)
    return (block.label_histogram(groups, len(names)) for block in data.partition.blocks())


def label_groups(data: FederatedData) -> tuple[np.ndarray, list[str]]:
    """Return the (E,) group of each training example and the groups' names, by which a partition is shown.

    Groups are the classes; of numbers, equal intervals between the smallest and the largest; of texts without a label
    column, a single one.
    """
    if "label" not in data.train.column_names:
        return np.zeros(len(data.train), dtype=np.int64), ["all"]
    labels = data.train.with_format("numpy")["label"][:]
    if data.kind != "regression":
        return labels, list(data.label_names)
    edges = np.histogram_bin_edges(labels, bins=NUM_INTERVALS)
    names = [f"to {edge:.3g}" for edge in edges[1:]]
    return np.digitize(labels, edges[1:-1], right=True), names
