"""A round's mean under secure aggregation: of the sum that the masks leave, and of no update."""

from collections.abc import Sequence

import numpy as np

from fedpft.federated.aggregate import Aggregation
from fedpft.federated.aggregators.base import Memory
from fedpft.federated.messages import ClientUpdate, RoundPlan
from fedpft.federated.sampling import Cohort
from fedpft.federated.secure_aggregation import SecureRound
from fedpft.federated.server_rule import ServerRule


class MaskedAggregation(Aggregation):
    """Takes masked updates as `Aggregation` does plain ones; the server's optimiser works on their mean.

    Args:
        plan: the round's.
        order: see `Aggregation`.
        cohort: see `Aggregation`; each client once.
        rule: the server's; its aggregator, a mean, has no part.
        arrays: what it remembers.
        secure: the round, opened before the adapter is asked for.

    """

    def __init__(
        self,
        plan: RoundPlan,
        order: Sequence[int],
        cohort: Cohort,
        rule: ServerRule,
        arrays: Memory,
        secure: SecureRound,
    ) -> None:
        super().__init__(plan, order, cohort, "uniform", rule, arrays)
        self._secure, self._products = secure, None

    def next_adapter(self) -> tuple[np.ndarray, Memory]:
        """Return the adapter after the round, (P,) float32, and what the server remembers."""
        opened, aggregate = self._secure.opened, self._plan.adapter.copy()
        assert opened is not None, "a round that was not opened does not count"
        self.counts = opened.counts
        tuned = self._rule.tuned_numbers(self._plan)
        aggregate[tuned] = aggregate[tuned] + opened.update / opened.weight
        return self._rule.next_adapter(self._plan, aggregate, {}, self._arrays)

    def _take(self, update: ClientUpdate) -> None:
        assert update.masked is not None, "checked before"
        self._secure.add(update.masked)
