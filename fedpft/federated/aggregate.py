"""From the cohort's updates to the next global adapter."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedpft.federated.messages import ClientUpdate
from fedpft.federated.sampling import Cohort
from fedpft.models.activations import ActivationCounts


def aggregate_adapters(
    updates: Sequence[ClientUpdate], cohort: Cohort, kind: Literal["weighted", "uniform"]
) -> np.ndarray:
    """Return the (P,) float32 weighted mean of the adapters: `sum_i w_i W_i / sum_i w_i`.

    `w_i` is the client's number of examples (`weighted`) or 1 (`uniform`), times how often it was drawn. Each update is
    paired with its own weight by client id and summed in that order in float64, so the result does not depend on the
    order of arrival.
    """
    total = np.zeros(updates[0].adapter.shape, dtype=np.float64)
    total_weight = 0.0
    for update in in_client_order(updates):
        weight = cohort[update.client_id] * (update.num_examples if kind == "weighted" else 1.0)
        total += weight * update.adapter.astype(np.float64)
        total_weight += weight
    return (total / total_weight).astype(np.float32)


def sum_counts(updates: Sequence[ClientUpdate]) -> ActivationCounts | None:
    """Return the exact sum of the clients' activation counts, or None when nobody counted."""
    counted = [update.counts for update in updates if update.counts is not None]
    if not counted:
        return None
    zeros = tuple(np.sum(layer, axis=0) for layer in zip(*(counts.zeros for counts in counted), strict=True))
    return ActivationCounts(zeros=zeros, positions=np.sum([counts.positions for counts in counted], axis=0))


def mean_loss(updates: Sequence[ClientUpdate]) -> float:
    """Return the training loss per example over the cohort."""
    examples = sum(update.num_examples for update in updates)
    return sum(update.metrics["loss"] * update.num_examples for update in in_client_order(updates)) / examples


def in_client_order(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """Return the updates sorted by client id."""
    return sorted(updates, key=lambda update: update.client_id)
