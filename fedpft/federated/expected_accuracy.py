"""PURE: what label skew does to clients: the accuracy that each may expect, from accuracies by class.

It costs no forward pass and opens no client's data: what a model gets right of each class of the evaluation set is
weighted by the client's own label counts. That is the client's accuracy if its examples of a class are like the
evaluation set's, as in partitions by labels (`dirichlet`, `shards`, `iid`). It says nothing of clients that differ
otherwise (`natural`), and is no evaluation of their examples. Legend: `K` clients, `C` classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

LOW_QUANTILE = 0.1


def client_expected_accuracy(
    label_histogram: Sequence[Sequence[int]], class_accuracy: Sequence[float | None]
) -> dict[str, Any]:
    """Return the accuracies that clients may expect, and their spread over clients that have one, each counting once.

    Args:
        label_histogram: (K, C) how many examples of each class a client owns.
        class_accuracy: (C,) share of each class that the model gets right; None: the evaluation set has none of it.

    Returns:
        `values`: K accuracies to 6 decimals, None for a client that owns no example of a class with an accuracy;
        `mean`, `p10` (the 10th percentile), `min`, `max`; empty if no client has one.

    """
    known = [index for index, accuracy in enumerate(class_accuracy) if accuracy is not None]
    counts = np.asarray(label_histogram, dtype=np.float64)[:, known]  # (K, known)
    accuracies = np.array([class_accuracy[index] for index in known], dtype=np.float64)
    sizes = counts.sum(axis=1)  # (K,)
    owns = sizes > 0
    if not owns.any():
        return {}
    expected = counts[owns] @ accuracies / sizes[owns]
    spread = {
        "mean": expected.mean(),
        "p10": np.quantile(expected, LOW_QUANTILE),
        "min": expected.min(),
        "max": expected.max(),
    }
    values: list[float | None] = [None] * len(counts)
    for client_id, accuracy in zip(np.flatnonzero(owns), expected, strict=True):
        values[client_id] = round(float(accuracy), 6)
    return {name: round(float(value), 6) for name, value in spread.items()} | {"values": values}
