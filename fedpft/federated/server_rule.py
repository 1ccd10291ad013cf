"""What the server makes of a round's updates, as a value: the chain from many clients' adapters to the next one.

    update transforms -> aggregator -> server transforms -> server optimiser -> rewrite

    each client's     many to one      the aggregate's      adapter and update    other factors,
    update                             update               to the next adapter   same products

An update is an adapter minus the one that the round began with. Where nothing but the aggregator has a say, the
aggregate itself is the next adapter, to the last bit.

A round that tunes one of LoRA's factors leaves the other's bits, whatever the server remembers: neither its earlier
momentum nor a centre of the aggregator's moves it, and what is remembered of it waits for the next round that tunes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fedpft.config import FederatedConfig, LoraAggregation, ServerOptimiserConfig
from fedpft.federated.aggregators.base import Aggregator, Memory, moved
from fedpft.federated.aggregators.lora import MeanOfProducts, factor_pairs, orthonormal, tuned_factors
from fedpft.federated.aggregators.mean import Mean
from fedpft.federated.aggregators.table import make_aggregator
from fedpft.federated.messages import RoundPlan
from fedpft.federated.own_parts import own_aggregator, own_optimiser
from fedpft.federated.server_optimisers import Adaptive, Momentum, ServerOptimiser
from fedpft.models.lora import AdapterLayout, Factors, head_mask, tuned_mask

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
    rewrite: Callable[[np.ndarray], np.ndarray] = np.asarray
    """The same adapter in other factors, (P,) to (P,)."""
    layout: AdapterLayout = ()
    """Names and shapes in the flat vector; empty: not known, and nothing below is done."""
    lora: LoraAggregation = "separate"
    compares_products: bool = False
    """Whether rounds record how far the aggregate's products are from the mean of the clients'."""

    def transformed(self, adapter: np.ndarray, plan: RoundPlan, client_id: int) -> np.ndarray:
        """Return a client's adapter, (P,), as the aggregator shall see it."""
        if not self.update_transforms:
            return adapter
        return moved(plan.adapter, _apply(self.update_transforms, _update(adapter, plan), plan.round_index, client_id))

    def tuned(self, round_index: int) -> Factors:
        """Return what clients tune in a round."""
        return tuned_factors(self.lora, round_index)

    def tuned_numbers(self, plan: RoundPlan) -> np.ndarray | slice:
        """Return what indexes the numbers of the flat vector that a round tunes."""
        return slice(None) if plan.tuned == "all" else tuned_mask(self.layout, plan.tuned)

    def memory(self, arrays: Memory, plan: RoundPlan) -> Memory:
        """Return what the aggregator remembers, with zeros for what is not tuned in the round."""
        part = _part(arrays, _AGGREGATOR)
        return self._merged(plan, part, {name: np.zeros(1) for name in part})

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
        made = {"adapter": aggregate, **{_AGGREGATOR + name: value for name, value in memory.items()}}
        before = {**arrays, "adapter": plan.adapter}
        if self.server_transforms or self.optimiser is not None:
            update = _apply(self.server_transforms, _update(aggregate, plan), plan.round_index, SERVER)
            if plan.tuned != "all":
                update = np.where(tuned_mask(self.layout, plan.tuned), update, 0.0)
            made["adapter"] = moved(plan.adapter, update)
        if self.optimiser is not None:
            state = _part(arrays, _OPTIMISER) or self.optimiser.init(plan.adapter)
            before |= {_OPTIMISER + name: value for name, value in state.items()}
            state, adapter = self.optimiser.step(state, plan.adapter, update)
            made |= {_OPTIMISER + name: value for name, value in state.items()}
            made["adapter"] = adapter.astype(np.float32)
        kept = dict(self._merged(plan, made, before))
        return self.rewrite(kept.pop("adapter")), kept

    def _merged(self, plan: RoundPlan, made: Memory, before: Memory) -> Memory:
        """Return arrays as a round made them, of those like an adapter only what it tunes: the rest is as before it."""
        if plan.tuned == "all" or not self.layout:
            return made
        tuned, shape = tuned_mask(self.layout, plan.tuned), plan.adapter.shape
        like_adapter = {
            name: np.where(tuned, value, before[name])
            for name, value in made.items()
            if value.shape == shape and name in before
        }
        return {**made, **like_adapter}


def server_rule(config: FederatedConfig, layout: AdapterLayout) -> ServerRule:
    """Return the chain that the settings ask for.

    Args:
        config: of the run.
        layout: of the adapter.

    Raises:
        ConfigError: a part of others that cannot be imported or made.

    """
    kind, pairs = config.lora_aggregation, factor_pairs(layout)
    made = (own_aggregator if config.aggregator.is_own else make_aggregator)(config.aggregator)
    return ServerRule(
        aggregator=MeanOfProducts(pairs) if kind == "svd" else made,
        min_updates=config.aggregator.min_updates,
        optimiser=make_optimiser(config.server, head_mask(layout)),
        layout=layout,
        lora=kind,
        compares_products=config.aggregator.kind == "mean",
        rewrite=partial(orthonormal, pairs=pairs if kind == "fedsvd" else ()),
    )


def held_by_server(config: FederatedConfig, layout: AdapterLayout) -> dict[str, int]:
    """Return the bytes that the aggregator holds at the end of a round where it needs all updates; else nothing."""
    stacked = config.aggregator.facts.is_stacked or config.lora_aggregation == "svd"
    return {"bytes_held_by_server": 4 * config.cohort_size * len(head_mask(layout))} if stacked else {}


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
