"""What travels with a round's plan and its updates, besides or instead of the whole adapter.

plan  = adapter + learning rate ...       -> [+ tau] [+ shared and states] -> [only what is tuned] -> clients
whole update <- [what was not tuned]      <- [state: to `ControlVariates.states`]                  <- update
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from fedpft.config import FederatedConfig
from fedpft.federated.aggregators.lora import tuned_factors
from fedpft.federated.client_ranks import bytes_left_out
from fedpft.federated.control_variates import ClientStates, ControlVariates, StatesInMemory, client_weights
from fedpft.federated.local_schedule import mean_normaliser
from fedpft.federated.messages import Arrays, ClientUpdate, RoundPlan
from fedpft.federated.sampling import Cohort
from fedpft.models.lora import AdapterLayout, head_mask, tuned_mask


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A run's messages; of its defaults nothing but the adapter travels, and all of it."""

    layout: AdapterLayout = ()
    """The adapter's; needed where a round tunes one of LoRA's factors."""
    keeps_frozen: bool = False
    """Whether the factor that is not tuned is the same in all rounds, so that clients have it with the proxy."""
    tau: Callable[[Cohort], float] | None = None
    """FedNova's; None: another rule of steps."""
    left_out: Mapping[int, int] = field(default_factory=dict)
    """client_id -> bytes of the adapter that a client of a lower rank neither gets nor sends: they are zeros."""
    variates: ControlVariates | None = None
    """SCAFFOLD's; None: clients have no state."""

    def complete(self, plan: RoundPlan, cohort: Cohort, memory: Arrays) -> RoundPlan:
        """Return the plan with what its clients need besides.

        Args:
            plan: the round's.
            cohort: for whom.
            memory: the server's arrays.

        """
        if self.tau is not None and cohort:
            plan = replace(plan, tau=self.tau(cohort))
        if self.variates is not None:
            shared, states = self.variates.sent(memory, len(plan.adapter))
            plan = replace(plan, shared=shared, states=states)
        return plan

    def asked(self, plan: RoundPlan) -> RoundPlan:
        """Return the plan with only what is tuned of the adapter: the shape of an update."""
        if plan.tuned == "all":
            return plan
        return replace(plan, adapter=plan.adapter[tuned_mask(self.layout, plan.tuned)], is_whole=False)

    def sent(self, plan: RoundPlan) -> RoundPlan:
        """Return the plan as it travels."""
        return self.asked(plan) if self.keeps_frozen else plan

    def bytes_down(self, plan: RoundPlan, cohort: Cohort) -> int:
        """Return the bytes of the plan for all clients."""
        shared = sum(array.nbytes for array in plan.shared.values())
        copies = len(cohort) + sum(client_id in plan.states for client_id in cohort)
        left_out = sum(self.left_out.get(client_id, 0) for client_id in cohort)
        return len(cohort) * self.sent(plan).adapter.nbytes - left_out + copies * shared

    def received(self, update: ClientUpdate, plan: RoundPlan) -> ClientUpdate:
        """Return a good update with the whole adapter, and put its state away."""
        sent_bytes, adapter = update.num_bytes - self.left_out.get(update.client_id, 0), update.adapter
        if plan.tuned != "all" and plan.masking is None:
            adapter = plan.adapter.copy()
            adapter[tuned_mask(self.layout, plan.tuned)] = update.adapter
        if self.variates is not None:
            self.variates.states.write(update.client_id, plan.round_index, update.state)
        return replace(update, adapter=adapter, state={}, sent_bytes=sent_bytes)

    def remembered(self, memory: Arrays, client_ids: Iterable[int], round_index: int) -> Arrays:
        """Return the server's arrays that are the clients', after a round in which these have moved the adapter."""
        return {} if self.variates is None else self.variates.after_round(memory, client_ids, round_index)

    def forget(self, round_index: int) -> None:
        """Drop what clients sent in a round that moved nothing."""
        if self.variates is not None:
            self.variates.states.forget(round_index)


def make_exchange(
    config: FederatedConfig,
    sizes: np.ndarray,
    layout: AdapterLayout,
    states: ClientStates | None = None,
    ranks: Mapping[int, int] = MappingProxyType({}),
) -> Exchange:
    """Return the messages that the settings ask for.

    Args:
        config: the run's.
        sizes: (num_clients,) examples of each client.
        layout: of the adapter.
        states: keeps what clients send as their state; None: this process does.
        ranks: of clients, where they differ.

    """
    weights = client_weights(sizes, config.aggregation)
    keeps_state, is_fednova = config.client.keeps_state, config.client.kind == "fednova"
    return Exchange(
        layout=layout,
        left_out=bytes_left_out(ranks, layout),
        keeps_frozen=config.lora_aggregation == "ffa",
        tau=partial(mean_normaliser, config, sizes=sizes) if is_fednova else None,
        variates=ControlVariates(states=states or StatesInMemory(), weights=weights) if keeps_state else None,
    )


def traffic(
    config: FederatedConfig, layout: AdapterLayout, ranks: Mapping[int, int] = MappingProxyType({})
) -> dict[str, int]:
    """Return the bytes of a client's round: the mean over clients, and over two rounds, which may tune other factors.

    A client that keeps a state gets it and the server's with every adapter, but for its first round, and sends its own.
    The round after a neuron-level alignment also sends the re-aligned FFNs down, many times an adapter: see
    `comm/bytes_down` of each round.
    """
    adapter, kind = np.zeros(len(head_mask(layout)), dtype=np.float32), config.lora_aggregation
    exchange = make_exchange(config, np.ones(1), layout, ranks=ranks)
    plans = [
        RoundPlan(round_index=i, lr=0.0, adapter=adapter, count_activations=False, tuned=tuned_factors(kind, i))
        for i in (1, 2)
    ]
    up, down = (sum(of(plan).adapter.nbytes for plan in plans) // 2 for of in (exchange.asked, exchange.sent))
    left_out = sum(exchange.left_out.values()) // max(1, len(exchange.left_out))
    state = adapter.nbytes if config.client.keeps_state else 0
    return {
        "bytes_up_per_client_round": up - left_out + state,
        "bytes_down_per_client_round": down - left_out + 2 * state,
    }
