"""From the cohort's updates to their aggregate: who has answered, whose turn it is, and what of them is kept."""

from collections import deque
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Literal, TypeVar

import numpy as np

from fedpft.federated.aggregators.base import Memory
from fedpft.federated.aggregators.lora import products_of
from fedpft.federated.messages import ClientReport, ClientUpdate, RoundPlan
from fedpft.federated.sampling import Cohort
from fedpft.federated.server_rule import ServerRule
from fedpft.models.activations import ActivationCounts

Report = TypeVar("Report", bound=ClientReport)


class Aggregation:
    """A round's aggregate of adapters, by default their weighted mean, and the sum of its activation counts.

    A weight is the client's number of examples (`weighted`) or 1 (`uniform`), times how often it was drawn. The
    aggregator gets adapters in one fixed order, whatever the order of arrival, so the bits do not depend on who trained
    where. Of an update whose turn has come only its report stays, and what the aggregator makes of it.

    Args:
        plan: the round's.
        order: the cohort's clients, each once.
        cohort: how often each was drawn.
        kind: of the weights.
        rule: the server's.
        arrays: what it remembers of the rounds before.

    """

    def __init__(
        self,
        plan: RoundPlan,
        order: Sequence[int],
        cohort: Cohort,
        kind: Literal["weighted", "uniform"],
        rule: ServerRule | None = None,
        arrays: Memory = MappingProxyType({}),
    ) -> None:
        self.reports: list[ClientReport] = []
        """Of the good updates, in order of arrival."""
        self.counts: ActivationCounts | None = None
        """The exact sum so far; None: nobody counted."""
        self.num_bytes = 0
        """Size of all adapters and counts."""
        self.product_error: float | None = None
        """See `Products`; None: not measured."""
        self._turns, self._cohort, self._kind = deque(order), cohort, kind
        self._early: dict[int, ClientUpdate | None] = {}
        self._plan, self._rule, self._arrays = plan, rule or ServerRule(), arrays
        self._products = products_of(self._rule.layout) if self._rule.compares_products else None
        self._state = self._rule.aggregator.init(plan.adapter, len(order), self._rule.memory(arrays, plan))

    @property
    def num_held(self) -> int:
        """How many adapters wait for their turn."""
        return sum(update is not None for update in self._early.values())

    def add(self, update: ClientUpdate) -> None:
        """Take a good update of a client of the cohort."""
        self.reports.append(update.report())
        self.num_bytes += update.num_bytes
        self._sum_up_counts(update)
        self._early[update.client_id] = update
        self._advance()

    def drop(self, client_id: int) -> None:
        """Wait no longer for a client; one that has answered before stays."""
        self._early.setdefault(client_id, None)
        self._advance()

    def drop_rest(self) -> None:
        """Wait for nobody any more."""
        for client_id in set(self._turns) - self._early.keys():
            self.drop(client_id)

    def next_adapter(self) -> tuple[np.ndarray, Memory]:
        """Return the adapter, (P,) float32, that all that was added leads to, and what the server's rule remembers.

        At least one update was added, and as many as the rule needs.
        """
        self.drop_rest()
        aggregate, memory = self._rule.aggregator.finish(self._state)
        if self._products is not None:
            self.product_error = self._products.error(aggregate)
        return self._rule.next_adapter(self._plan, aggregate, memory, self._arrays)

    def _advance(self) -> None:
        while self._turns and self._turns[0] in self._early:
            update = self._early.pop(self._turns.popleft())
            if update is not None:
                self._take(update)

    def _take(self, update: ClientUpdate) -> None:
        client_id = update.client_id
        weight = self._cohort[client_id] * (update.num_examples if self._kind == "weighted" else 1.0)
        adapter = self._rule.transformed(update.adapter, self._plan, client_id)
        self._state = self._rule.aggregator.add(self._state, adapter, weight)
        if self._products is not None:
            self._products.add(adapter, weight)

    def _sum_up_counts(self, update: ClientUpdate) -> None:
        if update.counts is not None:
            self.counts = update.counts if self.counts is None else _add_counts(self.counts, update.counts)


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
