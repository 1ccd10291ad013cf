"""What the server makes of a round's updates, as a value: the chain from many clients' adapters to the next one.

    update transforms -> aggregator -> server transforms -> server optimiser

    each client's     many to one      the aggregate's      adapter and update
    update                             update               to the next adapter

An update is an adapter minus the one that the round began with. Where nothing but the aggregator has a say, the
aggregate itself is the next adapter, to the last bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedpft.config import FederatedConfig, ServerOptimiserConfig
from fedpft.federated.aggregators.base import Aggregator, Memory, moved
from fedpft.federated.aggregators.mean import Mean
from fedpft.federated.aggregators.table import make_aggregator
from fedpft.federated.messages import RoundPlan
from fedpft.federated.own_parts import own_aggregator, own_optimiser
from fedpft.federated.server_optimisers import Adaptive, Momentum, ServerOptimiser

Transform = Callable[[np.ndarray, int, int], np.ndarray]
"""(update (P,) float64, round, client id; of the server's own -1) -> the update to go on with, (P,)."""

SERVER = -1
"""In place of a client's id."""

_AGGREGATOR, _OPTIMISER = "aggregator/", "server/"


@dataclass(frozen=True, kw_only=True)
class ServerRule:
    """The chain; all that it remembers is in the arrays that it is given and returns."""

    update_transforms: Sequence[Transform] = ()
    aggregator: Aggregator = field(default_factory=Mean)
    min_updates: int = 1
    """Good updates that the aggregator needs."""
    server_transforms: Sequence[Transform] = ()
    optimiser: ServerOptimiser | None = None
    """None: the aggregate is the next adapter."""

    def transformed(self, adapter: np.ndarray, plan: RoundPlan, client_id: int) -> np.ndarray:
        """Return a client's adapter, (P,), as the aggregator shall see it."""
        if not self.update_transforms:
            return adapter
        return moved(plan.adapter, _apply(self.update_transforms, _update(adapter, plan), plan.round_index, client_id))

    def memory(self, arrays: Memory) -> Memory:
        """Return what the aggregator remembers."""
        return _part(arrays, _AGGREGATOR)

    def next_adapter(
        self, plan: RoundPlan, aggregate: np.ndarray, memory: Memory, arrays: Memory
    ) -> tuple[np.ndarray, Memory]:
        """Return the adapter after a round that counts, (P,) float32, and what is to be remembered.

        Args:
            plan: the round's.
            aggregate: (P,) float32, of the clients' adapters.
            memory: the aggregator's, from the round.
            arrays: what was remembered before the round.

        """
        kept = {_AGGREGATOR + name: value for name, value in memory.items()}
        if not self.server_transforms and self.optimiser is None:
            return aggregate, kept
        update = _apply(self.server_transforms, _update(aggregate, plan), plan.round_index, SERVER)
        if self.optimiser is None:
            return moved(plan.adapter, update), kept
        state = _part(arrays, _OPTIMISER) or self.optimiser.init(plan.adapter)
        state, adapter = self.optimiser.step(state, plan.adapter, update)
        return adapter.astype(np.float32), kept | {_OPTIMISER + name: value for name, value in state.items()}


def server_rule(config: FederatedConfig, is_head: np.ndarray) -> ServerRule:
    """Return the chain that the settings ask for.

    Args:
        config: of the run.
        is_head: (P,) bool, which numbers of the adapter are the task head's.

    Raises:
        ConfigError: a part of others that cannot be imported or made.

    """
    return ServerRule(
        aggregator=(own_aggregator if config.aggregator.is_own else make_aggregator)(config.aggregator),
        min_updates=config.aggregator.min_updates,
        optimiser=make_optimiser(config.server, is_head),
    )


def make_optimiser(config: ServerOptimiserConfig, is_head: np.ndarray) -> ServerOptimiser | None:
    """Return the step that the settings ask for; None where the aggregate is the next adapter."""
    if config.is_own:
        return own_optimiser(config)
    lora, head = config.rates
    if config.kind == "avg" and lora == head == 1:
        return None
    lr = np.where(is_head, head, lora)
    if config.kind in ("avg", "momentum"):
        return Momentum(lr=lr, beta1=config.beta1 if config.kind == "momentum" else 0.0)
    kind: Any = config.kind
    return Adaptive(kind=kind, lr=lr, beta1=config.beta1, beta2=config.beta2, tau=config.tau)


def _update(adapter: np.ndarray, plan: RoundPlan) -> np.ndarray:
    return adapter - plan.adapter.astype(np.float64)


def _apply(transforms: Sequence[Transform], update: np.ndarray, round_index: int, client_id: int) -> np.ndarray:
    for transform in transforms:
        update = transform(update, round_index, client_id)
    return update


def _part(arrays: Memory, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
