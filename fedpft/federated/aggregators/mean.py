"""The weighted mean, and the mean of updates of a bounded norm: what they hold does not grow with the cohort."""

from dataclasses import dataclass

import numpy as np

from fedpft.federated.aggregators.base import Memory


@dataclass
class Sum:
    """Of the adapters so far."""

    start: np.ndarray
    total: np.ndarray
    """(P,) float64."""
    weight: float = 0.0


@dataclass(frozen=True)
class Mean:
    """The weighted mean of adapters, `sum_i w_i W_i / sum_i w_i`, summed in float64."""

    def init(self, start: np.ndarray, most: int, memory: Memory) -> Sum:
        """See `Aggregator`."""
        return Sum(start, np.zeros(start.shape))

    def add(self, state: Sum, adapter: np.ndarray, weight: float) -> Sum:
        """See `Aggregator`."""
        state.total += np.multiply(adapter, weight, dtype=np.float64)
        state.weight += weight
        return state

    def finish(self, state: Sum) -> tuple[np.ndarray, Memory]:
        """See `Aggregator`."""
        assert state.weight > 0, "there is no mean of nothing"
        return (state.total / state.weight).astype(np.float32), {}


@dataclass(frozen=True)
class NormBound(Mean):
    """The mean of updates that were scaled down to a norm, all with the same weight."""

    norm: float

    def add(self, state: Sum, adapter: np.ndarray, weight: float) -> Sum:
        """See `Aggregator`."""
        update = adapter.astype(np.float64) - state.start
        return super().add(state, state.start + bounded(update, self.norm), 1.0)


def bounded(update: np.ndarray, norm: float) -> np.ndarray:
    """Return an update, (P,), scaled down to a norm where it is longer."""
    length = float(np.linalg.norm(update))
    return update * (norm / length) if length > norm else update
