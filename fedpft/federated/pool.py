"""How clients are run is a swappable part: the protocol, and the pool that needs no Ray."""

import platform
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np

from fedpft.federated.client import LocalClient
from fedpft.federated.grouping import groups
from fedpft.federated.masking import answer, sent
from fedpft.federated.messages import ClientFailure, ClientUpdate, MaskingAnswer, MaskingStep, RoundPlan
from fedpft.federated.package import ClientPackage
from fedpft.interrupt import one_line
from fedpft.models.patches import HeldWeights, num_bytes
from fedpft.tracking.trackers import Tracker

Outcome = TypeVar("Outcome", ClientUpdate | ClientFailure, MaskingAnswer)


class ClientPool(Protocol):
    """Runs clients somewhere. For the same calls every pool returns the same updates, bit for bit on CPU.

    A client that fails is tried again, a bounded number of times, each time in a fresh place: one that never ran a
    client and holds the same bits. So faults that pass change no result.
    """

    @property
    def num_actors(self) -> int:
        """How many clients train at a time."""

    @property
    def dashboard(self) -> str | None:
        """Where the places can be watched, as a URL; None: nowhere."""

    def trackers(self, run: str) -> Sequence[Tracker]:
        """Return who else wants the run's numbers, as numbers of the run of that name."""

    def broadcast(self, package: ClientPackage) -> None:
        """Give every place the proxy and the data; once, before the first round."""

    def replace_weights(self, weights: Mapping[str, np.ndarray]) -> int:
        """Send what differs in these weights of the proxy to every place, effective from the next round.

        Returns:
            Its bytes, as each place gets them.

        """

    def run(self, plan: RoundPlan, client_ids: Sequence[int]) -> Iterator[ClientUpdate | ClientFailure]:
        """Start clients in this order; yield the update of each, or why there is none, as they arrive."""

    def ask(self, step: MaskingStep, client_ids: Sequence[int]) -> Iterator[MaskingAnswer | ClientFailure]:
        """Put a step of secure aggregation to clients; yield the answer of each, or why there is none, in any order."""

    def memory(self) -> Mapping[str, int]:
        """Return what the actors hold: `actor_rss_bytes_max`, `object_store_bytes`, ...; empty without actors."""

    def peak_memory_bytes(self) -> list[int]:
        """Return each actor's peak resident memory; empty when clients run in the driver."""

    def close(self) -> None:
        """Release processes and memory; the pool is done."""


class SequentialPool:
    """Clients one after the other in the driver's own process, or as many together as the package's settings say.

    Args:
        max_retries: further attempts for a client whose training raises, each on a fresh copy of the proxy.

    """

    num_actors = 1
    dashboard: str | None = None

    def __init__(self, max_retries: int = 2) -> None:
        self._max_retries = max_retries

    def trackers(self, run: str) -> Sequence[Tracker]:
        """Return nobody."""
        return ()

    def broadcast(self, package: ClientPackage) -> None:
        """Build the one place."""
        self._package, self._held = package, HeldWeights(package.proxy.weights)
        self._client = LocalClient(package)

    def replace_weights(self, weights: Mapping[str, np.ndarray]) -> int:
        """Update the one place."""
        changes = self._held.changes(weights)
        self._client.replace_weights(weights)
        return num_bytes(changes)

    def run(self, plan: RoundPlan, client_ids: Sequence[int]) -> Iterator[ClientUpdate | ClientFailure]:
        """Train in the given order; a group that fails together is no attempt of anybody, and tried one by one."""
        together = groups(client_ids, self._package.settings, self.num_actors)
        for number, group in enumerate(together):
            self._client.ahead.begin(chain.from_iterable(together[number + 1 : number + 2]))
            if len(group) > 1:
                try:
                    yield from self._sent(plan, self._client.fit_together(plan, group))
                    continue
                except Exception:  # by whose fault will be seen
                    self._renew()
            for client_id in group:
                yield self._try(plan.round_index, client_id, partial(self._fit, plan, client_id))

    def ask(self, step: MaskingStep, client_ids: Sequence[int]) -> Iterator[MaskingAnswer | ClientFailure]:
        """Ask in the given order; this process is all clients then, and the server, too."""
        seed = self._package.settings.seed
        for client_id in client_ids:
            yield self._try(step.round_index, client_id, partial(answer, step, client_id, seed, "driver"))

    def _fit(self, plan: RoundPlan, client_id: int) -> ClientUpdate | ClientFailure:
        (update,) = self._sent(plan, [self._client.fit(plan, client_id)])
        return update

    def _sent(self, plan: RoundPlan, updates: Sequence[ClientUpdate]) -> Sequence[ClientUpdate | ClientFailure]:
        return sent(updates, plan, self._client, self._package.settings.seed)

    def _try(self, round_index: int, client_id: int, play: Callable[[], Outcome]) -> Outcome | ClientFailure:
        for attempt in range(1, self._max_retries + 2):
            try:
                return replace(play(), attempts=attempt)
            except Exception as error:
                failure = ClientFailure(
                    round_index=round_index,
                    client_id=client_id,
                    attempts=attempt,
                    actor="driver",
                    node=platform.node(),
                    reason=one_line(error),
                    traceback=traceback.format_exc(),
                )
            self._renew()
        return failure

    def _renew(self) -> None:
        self._client = LocalClient(self._package)  # half a step's gradients may be left in the old one
        self._client.replace_weights(self._held.changed)

    def memory(self) -> Mapping[str, int]:
        """Return nothing: the driver's own figure holds it all."""
        return {}

    def peak_memory_bytes(self) -> list[int]:
        """Return nothing: the driver's own figure holds it all."""
        return []

    def close(self) -> None:
        """Nothing to release."""
