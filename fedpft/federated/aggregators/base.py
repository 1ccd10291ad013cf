"""What an aggregator is: many clients' adapters to one, as values and pure functions.

Legend: `n` updates of a round, `P` numbers of the adapter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Memory = Mapping[str, np.ndarray]
"""What a part of the server remembers between rounds, by name; it goes into the checkpoint."""


class Aggregator(Protocol):
    """A rule that takes adapters one by one, in an order that is fixed by the cohort.

    The state is the rule's own affair; whoever calls uses each state once, so a rule may change it in place.
    """

    def init(self, start: np.ndarray, most: int, memory: Memory) -> Any:
        """Return the state before the first adapter.

        Args:
            start: (P,) float32, the adapter that the clients began with.
            most: how many may come.
            memory: what :meth:`finish` returned after the last round that counted; empty before the first.

        """

    def add(self, state: Any, adapter: np.ndarray, weight: float) -> Any:
        """Return the state with one more adapter, (P,)."""

    def finish(self, state: Any) -> tuple[np.ndarray, Memory]:
        """Return the aggregate, (P,), and what to remember; at least one adapter was added."""


Rule = Callable[[np.ndarray, np.ndarray, Memory], tuple[np.ndarray, Memory]]
"""(updates, weights, memory) -> an update, (P,), and what to remember.

`updates` (n, P) float32 are what clients changed in the adapter, `weights` (n,) float64; a rule changes neither.
"""


@dataclass
class Stack:
    """All updates of a round so far."""

    start: np.ndarray
    memory: Memory
    updates: np.ndarray
    """(most, P) float32; only the first `len(weights)` rows are filled."""
    weights: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Stacked:
    """An aggregator that needs all updates at once: it holds `most * P` numbers.

    Args:
        rule: of updates, which are differences to the start.

    """

    rule: Rule

    def init(self, start: np.ndarray, most: int, memory: Memory) -> Stack:
        """See `Aggregator`."""
        return Stack(start, memory, np.empty((most, len(start)), dtype=np.float32))

    def add(self, state: Stack, adapter: np.ndarray, weight: float) -> Stack:
        """See `Aggregator`."""
        np.subtract(adapter, state.start, out=state.updates[len(state.weights)])
        state.weights.append(weight)
        return state

    def finish(self, state: Stack) -> tuple[np.ndarray, Memory]:
        """See `Aggregator`."""
        update, memory = self.rule(state.updates[: len(state.weights)], np.array(state.weights), state.memory)
        return moved(state.start, update), memory


def stacked(function: Callable[..., np.ndarray], **settings: Any) -> Stacked:
    """Return the aggregator of a function of the updates alone, and of settings; it remembers nothing."""
    return Stacked(lambda updates, weights, memory: (function(updates, **settings), {}))


def moved(start: np.ndarray, update: np.ndarray) -> np.ndarray:
    """Return the adapter, (P,) float32, that a change of another one leads to."""
    return (start.astype(np.float64) + update).astype(np.float32)
