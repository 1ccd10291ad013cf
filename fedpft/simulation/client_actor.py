"""The Ray actor in which clients train: a process that keeps the LightningModule over the proxy between rounds."""

from collections.abc import Mapping

import numpy as np
import torch

from fedpft.federated.client import ClientPackage, LocalClient
from fedpft.federated.messages import ClientUpdate, RoundPlan
from fedpft.federated.pool import process_peak_memory_bytes


class ClientActor:
    """Plays clients, one at a time; never sees the FM.

    Args:
        name: for reports, e.g. `actor-1`.
        num_threads: torch threads; more than one per process stalls actors that share cores.

    """

    def __init__(self, name: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._name = name

    def receive(self, package: ClientPackage) -> None:
        """Build the proxy; its frozen weights stay in the node's shared memory, one copy for all actors."""
        self._client = LocalClient(package, self._name)

    def replace_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over changed proxy weights."""
        self._client.replace_weights(weights)

    def fit(self, plan: RoundPlan, client_id: int) -> ClientUpdate:
        """Train one client."""
        return self._client.fit(plan, client_id)

    def peak_memory_bytes(self) -> int:
        """Return this process' peak resident memory, shared pages included."""
        return process_peak_memory_bytes()
