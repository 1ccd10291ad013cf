"""Who the adversaries are, and how the driver lets them replace their updates."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from fedpft.config import AdversaryConfig, Config
from fedpft.config.adversary import OMNISCIENT
from fedpft.federated.adversary.attacks import alie, gaussian, inner_product, min_max, sign_flip
from fedpft.federated.messages import ClientFailure, ClientUpdate, RoundPlan
from fedpft.seeding import numpy_rng

Outcome = ClientUpdate | ClientFailure

FROM_HONEST: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "alie": alie,
    "inner_product": inner_product,
    "min_max": lambda honest, scale: min_max(honest),
}
"""Kind -> attack that is made of the round's honest updates, (n, P)."""


@dataclass(frozen=True, kw_only=True)
class Adversaries:
    """Some clients, and what they do to their updates; those who spoil data send what they trained."""

    config: AdversaryConfig
    seed: int
    """Of what is drawn of the clients."""
    clients: frozenset[int]

    def attack(self, plan: RoundPlan, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """Pass on what a pool returns, with the adversaries' updates replaced.

        Where these are made of the honest ones, all honest updates are kept until the last client has answered, and
        the adversaries' come after all others. A round without honest updates is left as it is.
        """
        if self.config.kind not in OMNISCIENT:
            yield from (self._alone(plan, outcome) for outcome in outcomes)
            return
        honest: dict[int, np.ndarray] = {}
        waiting: list[ClientUpdate] = []
        for outcome in outcomes:
            if isinstance(outcome, ClientUpdate) and outcome.client_id in self.clients:
                waiting.append(outcome)
                continue
            if isinstance(outcome, ClientUpdate) and _is_usable(outcome, plan):
                honest[outcome.client_id] = outcome.adapter
            yield outcome
        if waiting and honest:
            updates = np.stack([honest[client] for client in sorted(honest)]).astype(np.float64) - plan.adapter
            crafted = FROM_HONEST[self.config.kind](updates, self.config.strength)
            waiting = [replace(update, adapter=_moved(plan, crafted)) for update in waiting]
        yield from waiting

    def _alone(self, plan: RoundPlan, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, ClientUpdate) or outcome.client_id not in self.clients:
            return outcome
        if self.config.kind == "sign_flip":
            own = outcome.adapter.astype(np.float64) - plan.adapter
            return replace(outcome, adapter=_moved(plan, sign_flip(own, self.config.strength)))
        if self.config.kind == "gaussian":
            rng = numpy_rng(self.seed, "adversary", plan.round_index, outcome.client_id)
            return replace(outcome, adapter=_moved(plan, gaussian(plan.adapter.size, self.config.strength, rng)))
        return outcome


def draw_adversaries(config: Config, num_clients: int) -> Adversaries | None:
    """Draw the adversaries of a run among its clients; None: there are none."""
    settings = config.federated.adversary
    number = round(settings.fraction * num_clients)
    if settings.kind == "none" or not number:
        return None
    drawn = numpy_rng(config.client_seed, "adversaries").permutation(num_clients)[:number]
    return Adversaries(config=settings, seed=config.client_seed, clients=frozenset(drawn.tolist()))


def _moved(plan: RoundPlan, update: np.ndarray) -> np.ndarray:
    return (plan.adapter + update).astype(np.float32)


def _is_usable(update: ClientUpdate, plan: RoundPlan) -> bool:
    """Whether the server will not refuse the adapter: who sends nonsense tells the adversaries nothing."""
    return update.adapter.shape == plan.adapter.shape and bool(np.isfinite(update.adapter).all())
