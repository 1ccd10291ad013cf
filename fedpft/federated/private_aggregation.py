"""A round's updates under differential privacy of whole clients: one noised release in place of their mean."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedpft.federated.aggregate import Aggregation
from fedpft.federated.aggregators.base import Memory
from fedpft.federated.messages import ClientUpdate, RoundPlan
from fedpft.federated.sampling import Cohort
from fedpft.federated.secure_aggregation import SecureRound
from fedpft.federated.server_rule import ServerRule
from fedpft.privacy.client_level import ClientLevel, Released, RoundRelease
from fedpft.privacy.guarantee import PrivacyState
from fedpft.seeding import numpy_rng


class PrivateAggregation(Aggregation):
    """Takes updates as `Aggregation` does; what comes of them is released once, with noise, whoever came.

    The server's optimiser works on what was released, and the aggregator of its rule has no part. Of a factor of LoRA
    that the round does not tune the release is not used: it stays as it was, without noise.

    Args:
        plan: the round's.
        order: see `Aggregation`.
        cohort: see `Aggregation`; each client once.
        rule: the server's.
        arrays: what it remembers.
        guarantee: the run's.
        state: of the guarantee before the round.
        num_neurons: of each watched FFN.
        secure: the round, if updates are masked: then clients have clipped them, and there is only their sum.

    """

    def __init__(
        self,
        plan: RoundPlan,
        order: Sequence[int],
        cohort: Cohort,
        rule: ServerRule,
        arrays: Memory,
        guarantee: ClientLevel,
        state: PrivacyState,
        num_neurons: Sequence[int],
        secure: SecureRound | None = None,
    ) -> None:
        super().__init__(plan, order, cohort, "uniform", rule, arrays)
        counted = tuple(num_neurons) if plan.count_activations else None
        self._release = RoundRelease(guarantee, state["clip"], plan.adapter, counted)
        self._rng = numpy_rng(guarantee.seed, "privacy_noise", plan.round_index)
        self._privacy = state
        self._released: Released | None = None
        self._secure = secure

    def next_adapter(self) -> tuple[np.ndarray, Memory]:
        """Return the adapter after the round, (P,) float32, and what the server remembers; also if nobody came."""
        self.drop_rest()
        if self._secure is not None:
            opened = self._secure.opened
            assert opened is not None, "a round that cannot be opened ends the run"
            update = np.zeros(len(self._plan.adapter))
            update[self._rule.tuned_numbers(self._plan)] = opened.update
            self._release.add_sum(update, opened.weight, opened.num_short)
        self._released = self._release.finish(self._rng)
        self.counts = self._released.counts
        return self._rule.next_adapter(self._plan, self._released.adapter, {}, self._arrays)

    def after_release(self, record: dict[str, Any]) -> PrivacyState:
        """Return the guarantee's state with the clip of the next round, and put into the record what was released."""
        assert self._released is not None, "the adapter is asked for first"
        record.update(self._released.record, **{"privacy/num_clipped": self._released.num_clipped})
        return {**self._privacy, "clip": self._released.next_clip}

    def _take(self, update: ClientUpdate) -> None:
        if self._secure is None:
            self._release.add(update.adapter, update.counts)
        else:
            assert update.masked is not None, "checked before"
            self._secure.add(update.masked)

    def _sum_up_counts(self, update: ClientUpdate) -> None:
        """Leave them to the release: their sum is nobody's to see."""
