"""Aggregators and server optimisers of others: called as they wish to be, and watched, so that their faults are theirs.

    aggregator         a function (updates, weights, config) -> (P,), arguments as of `Rule`, or a class, `Aggregator`
    server optimiser   a class, `ServerOptimiser`

Classes are called with their section of the config.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpft.config import AggregatorConfig, ServerOptimiserConfig
from fedpft.config.plugins import blamed, load_part, make_part
from fedpft.federated.aggregators.base import Aggregator, Memory, Stacked
from fedpft.federated.server_optimisers import Arrays, ServerOptimiser


def own_aggregator(config: AggregatorConfig) -> Aggregator:
    """Return the aggregator of others that the settings name.

    Raises:
        ConfigError: it cannot be imported or made.

    """
    part = load_part("aggregator", config.kind)
    if isinstance(part, type):
        return WatchedAggregator(make_part("aggregator", config.kind, config), config.kind)

    def rule(updates: np.ndarray, weights: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
        updates = updates.view()
        updates.flags.writeable = False
        with blamed("aggregator", config.kind):
            return _checked(part(updates, weights, config), updates.shape[1:]), {}

    return Stacked(rule)


def own_optimiser(config: ServerOptimiserConfig) -> ServerOptimiser:
    """Return the server optimiser of others that the settings name.

    Raises:
        ConfigError: it cannot be imported or made.

    """
    return WatchedOptimiser(make_part("server_optimiser", config.kind, config), config.kind)


@dataclass(frozen=True)
class WatchedAggregator:
    """An aggregator of others; what it gets wrong is one line with its name."""

    aggregator: Aggregator
    name: str

    def init(self, start: np.ndarray, most: int, memory: Memory) -> Any:
        """See `Aggregator`."""
        with blamed("aggregator", self.name):
            return start.shape, self.aggregator.init(start, most, memory)

    def add(self, state: Any, adapter: np.ndarray, weight: float) -> Any:
        """See `Aggregator`."""
        shape, own = state
        with blamed("aggregator", self.name):
            return shape, self.aggregator.add(own, adapter, weight)

    def finish(self, state: Any) -> tuple[np.ndarray, Memory]:
        """See `Aggregator`."""
        shape, own = state
        with blamed("aggregator", self.name):
            adapter, memory = self.aggregator.finish(own)
            return _checked(adapter, shape).astype(np.float32), _checked_arrays(memory)


@dataclass(frozen=True)
class WatchedOptimiser:
    """A server optimiser of others; what it gets wrong is one line with its name."""

    optimiser: ServerOptimiser
    name: str

    def init(self, adapter: np.ndarray) -> Arrays:
        """See `ServerOptimiser`."""
        with blamed("server_optimiser", self.name):
            return _checked_arrays(self.optimiser.init(adapter))

    def step(self, state: Arrays, adapter: np.ndarray, update: np.ndarray) -> tuple[Arrays, np.ndarray]:
        """See `ServerOptimiser`."""
        with blamed("server_optimiser", self.name):
            state, moved = self.optimiser.step(state, adapter, update)
            return _checked_arrays(state), _checked(moved, adapter.shape)


def _checked(found: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(found)
    if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"it returned {array.dtype} of shape {array.shape}, expected floats of shape {shape}")
    if not np.isfinite(array).all():
        raise ValueError("it returned NaN or infinite values")
    return array


def _checked_arrays(found: Any) -> Arrays:
    if not isinstance(found, Mapping) or not all(isinstance(value, np.ndarray) for value in found.values()):
        raise TypeError(f"it remembers {type(found).__name__}, expected a dict of NumPy arrays")
    return {name: np.ascontiguousarray(value) for name, value in found.items()}
