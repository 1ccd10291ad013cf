"""Who owns what: a partition as a table of counts."""

from typing import Any

import numpy as np

from fedpft.data.datamodule import FederatedData

NUM_INTERVALS = 5
"""In which a partition of numbers is shown."""


def partition_table(data: FederatedData) -> dict[str, Any]:
    """Return `label_names`, L words, and `label_histogram`, (clients, L): how many examples of each a client owns."""
    groups, names = label_groups(data)
    return {"label_names": names, "label_histogram": data.partition.label_histogram(groups, len(names)).tolist()}


def label_groups(data: FederatedData) -> tuple[np.ndarray, list[str]]:
    """Return the (E,) group of each training example and the groups' names, by which a partition is shown.

    Groups are the classes; of numbers, equal intervals between the smallest and the largest; of texts without a label
    column, a single one.
    """
    if "label" not in data.train.column_names:
        return np.zeros(len(data.train), dtype=np.int64), ["all"]
    labels = np.asarray(data.train["label"][:])
    if data.kind != "regression":
        return labels, list(data.label_names)
    edges = np.histogram_bin_edges(labels, bins=NUM_INTERVALS)
    names = [f"to {edge:.3g}" for edge in edges[1:]]
    return np.digitize(labels, edges[1:-1], right=True), names
