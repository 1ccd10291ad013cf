"""PURE: what label skew does to clients: the accuracy that each may expect, from accuracies by class.

It costs no forward pass and opens no client's data: what a model gets right of each class of the evaluation set is
weighted by the client's own label counts. That is the client's accuracy if its examples of a class are like the
evaluation set's, as in partitions by labels (`dirichlet`, `shards`, `iid`). It says nothing of clients that differ
otherwise (`natural`), and is no evaluation of their examples. Legend: `K` clients, `C` classes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fedpft.data.partition import MAX_LISTED_CLIENTS

LOW_QUANTILE = 0.1


def client_expected_accuracy(
    label_histograms: Iterable[np.ndarray], class_accuracy: Sequence[float | None]
) -> dict[str, Any]:
    """Return the accuracies that clients may expect, and their spread over clients that have one, each counting once.

    Args:
        label_histograms: how many examples of each class a client owns: (clients, C) each, all K clients in order.
        class_accuracy: (C,) share of each class that the model gets right; None: the evaluation set has none of it.

    Returns:
        `mean`, `p10` (the 10th percentile), `min`, `max`; `clients`, of how many; `values`: the accuracies of the first
        `MAX_LISTED_CLIENTS`, to 6 decimals, None for a client that owns no example of a class with an accuracy. Empty
        if no client has one.

    """
    by_client = np.concatenate([_expected(histogram, class_accuracy) for histogram in label_histograms])  # (K,)
    expected = by_client[~np.isnan(by_client)]
    if not len(expected):
        return {}
    spread = {
        "mean": expected.mean(),
        "p10": np.quantile(expected, LOW_QUANTILE),
        "min": expected.min(),
        "max": expected.max(),
    }
    values = [None if np.isnan(value) else round(value, 6) for value in by_client[:MAX_LISTED_CLIENTS].tolist()]
    rounded = {name: round(float(value), 6) for name, value in spread.items()}
    return rounded | {"clients": len(expected), "values": values}


def _expected(histogram: np.ndarray, class_accuracy: Sequence[float | None]) -> np.ndarray:
    """Return the accuracy of each client, NaN for one that has none."""
    known = [index for index, accuracy in enumerate(class_accuracy) if accuracy is not None]
    counts = np.asarray(histogram, dtype=np.float64)[:, known]
    accuracies = np.array([class_accuracy[index] for index in known], dtype=np.float64)
    sizes = counts.sum(axis=1)
    return np.divide(counts @ accuracies, sizes, out=np.full(len(counts), np.nan), where=sizes > 0)
