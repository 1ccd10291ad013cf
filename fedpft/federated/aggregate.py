"""From the cohort's updates to the next global adapter."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

import numpy as np

from fedpft.federated.messages import ClientReport, ClientUpdate
from fedpft.federated.sampling import Cohort
from fedpft.models.activations import ActivationCounts

Report = TypeVar("Report", bound=ClientReport)


class Aggregation:
    """The weighted mean of a round's adapters, `sum_i w_i W_i / sum_i w_i`, and the sum of its activation counts.

    `w_i` is the client's number of examples (`weighted`) or 1 (`uniform`), times how often it was drawn. Updates are
    summed in float64 in one fixed order, whatever the order of arrival, so the bits do not depend on who trained where.
    Of an update whose turn has come only its report stays: what is held does not grow with the cohort, as long as
    clients start in that order.

    Args:
        order: the cohort's clients, each once.
        cohort: how often each was drawn.
        kind: of the weights.

    """

    def __init__(self, order: Iterable[int], cohort: Cohort, kind: Literal["weighted", "uniform"]) -> None:
        self.reports: list[ClientReport] = []
        """Of the good updates, in order of arrival."""
        self.counts: ActivationCounts | None = None
        """The exact sum so far; None: nobody counted."""
        self.num_bytes = 0
        """Size of all adapters and counts."""
        self._turns, self._cohort, self._kind = deque(order), cohort, kind
        self._early: dict[int, ClientUpdate | None] = {}
        self._sum = np.zeros(())
        self._total_weight = 0.0

    @property
    def num_held(self) -> int:
        """How many adapters wait for their turn."""
        return sum(update is not None for update in self._early.values())

    def add(self, update: ClientUpdate) -> None:
        """Take a good update of a client of the cohort."""
        self.reports.append(update.report())
        self.num_bytes += update.num_bytes
        if update.counts is not None:
            self.counts = update.counts if self.counts is None else _add_counts(self.counts, update.counts)
        self._early[update.client_id] = update
        self._advance()

    def drop(self, client_id: int) -> None:
        """Wait no longer for a client; one that has answered before stays."""
        self._early.setdefault(client_id, None)
        self._advance()

    def adapter(self) -> np.ndarray:
        """Return the mean of all that was added, (P,) float32; at least one was."""
        for client_id in set(self._turns) - self._early.keys():
            self.drop(client_id)
        assert self._total_weight > 0, "there is no mean of nothing"
        return (self._sum / self._total_weight).astype(np.float32)

    def _advance(self) -> None:
        while self._turns and self._turns[0] in self._early:
            update = self._early.pop(self._turns.popleft())
            if update is not None:
                self._sum_up(update)

    def _sum_up(self, update: ClientUpdate) -> None:
        weight = self._cohort[update.client_id] * (update.num_examples if self._kind == "weighted" else 1.0)
        if self._sum.shape != update.adapter.shape:
            self._sum = np.zeros_like(update.adapter, dtype=np.float64)
        self._sum += np.multiply(update.adapter, weight, dtype=np.float64)
        self._total_weight += weight


def mean_loss(reports: Sequence[ClientReport]) -> float:
    """Return the training loss per example over the cohort."""
    examples = sum(report.num_examples for report in reports)
    return sum(report.metrics["loss"] * report.num_examples for report in in_client_order(reports)) / examples


def in_client_order(reports: Iterable[Report]) -> list[Report]:
    """Return reports, or whole updates, sorted by client id."""
    return sorted(reports, key=lambda report: report.client_id)


def _add_counts(one: ActivationCounts, other: ActivationCounts) -> ActivationCounts:
    zeros = tuple(a + b for a, b in zip(one.zeros, other.zeros, strict=True))
    return ActivationCounts(zeros=zeros, positions=one.positions + other.positions)
