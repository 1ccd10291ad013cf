"""How clients are run is a swappable part: the protocol, and the pool that needs no Ray."""

import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from fedpft.federated.client import ClientPackage, LocalClient
from fedpft.federated.messages import ClientUpdate, RoundPlan


class ClientPool(Protocol):
    """Runs clients somewhere. For the same calls every pool returns the same updates, bit for bit on CPU."""

    num_actors: int
    """How many clients train at a time."""

    def broadcast(self, package: ClientPackage) -> None:
        """Give every place the proxy and the data; once, before the first round."""

    def replace_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Send changed proxy weights to every place, effective from the next round."""

    def run(self, plan: RoundPlan, client_ids: Sequence[int]) -> Iterator[ClientUpdate]:
        """Train these clients and yield their updates as they arrive, in any order."""

    def peak_memory_bytes(self) -> list[int]:
        """Return each actor's peak resident memory; empty when clients run in the driver."""

    def close(self) -> None:
        """Release processes and memory; the pool is done."""


class SequentialPool:
    """Clients one after the other in the driver's own process."""

    num_actors = 1

    def broadcast(self, package: ClientPackage) -> None:
        """Build the one place."""
        self._client = LocalClient(package)

    def replace_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Update the one place."""
        self._client.replace_weights(weights)

    def run(self, plan: RoundPlan, client_ids: Sequence[int]) -> Iterator[ClientUpdate]:
        """Train in the given order."""
        return (self._client.fit(plan, client_id) for client_id in client_ids)

    def peak_memory_bytes(self) -> list[int]:
        """Return nothing: the driver's own figure holds it all."""
        return []

    def close(self) -> None:
        """Nothing to release."""


def process_peak_memory_bytes() -> int:
    """Return this process' peak resident memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
