"""The Ray actor in which clients train: a process that keeps the LightningModule over the proxy between rounds."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import ray
import torch

from fedpft.federated.client import LocalClient
from fedpft.federated.masking import answer, sent
from fedpft.federated.memory import ProcessMemory, process_memory, process_peak_memory_bytes
from fedpft.federated.messages import Arrays, ClientFailure, ClientUpdate, MaskingAnswer, MaskingStep, RoundPlan
from fedpft.federated.package import ClientPackage
from fedpft.models.patches import Change
from fedpft.simulation.pool.packing import MemoryUse, probe
from fedpft.trainer import be_deterministic, compute_products


class ClientActor:
    """Plays clients, one at a time or some together; never sees the FM.

    Args:
        name: for reports, e.g. `actor-1`.
        num_threads: torch threads; more than one per process stalls actors that share cores.
        deterministic: whether to use torch's deterministic algorithms alone.
        matmul_precision: of float32 products on a GPU.

    """

    def __init__(
        self, name: str, num_threads: int, deterministic: bool = False, matmul_precision: str = "highest"
    ) -> None:
        torch.set_num_threads(num_threads)
        compute_products(matmul_precision)
        be_deterministic(deterministic)
        self._name = name

    def receive(self, package: ClientPackage, weights: Mapping[str, np.ndarray]) -> str:
        """Build the proxy, changed to `weights`; return the name of this machine.

        The frozen weights stay in the node's shared memory, one copy for all actors.
        """
        self._client, self._seed = LocalClient(package, self._name), package.settings.seed
        self._client.replace_weights(weights)
        return platform.node()

    def replace_weights(self, weights: Mapping[str, Change]) -> str:
        """Take over changed proxy weights; return the name of this machine."""
        self._client.replace_weights(weights)
        return platform.node()

    @ray.method(num_returns=2)
    def patched(self, weights: Mapping[str, Change]) -> tuple[bool, dict[str, np.ndarray]]:
        """Return changed proxy weights whole, for all actors of the node to read in its shared memory.

        Before them that they are there, which can be asked without fetching them.
        """
        return True, self._client.patched(weights)

    def fit(
        self,
        plan: RoundPlan,
        groups: Sequence[Sequence[int]],
        states: Mapping[int, Arrays],
        upcoming: Sequence[int] = (),
    ) -> tuple[list[ClientUpdate | ClientFailure], ProcessMemory]:
        """Train groups of clients one after the other; return all updates, and what this process holds after the last.

        The clients of a group train together. `states` is the plan's, of these clients alone. `upcoming` are clients
        that somebody will train after these. Where the plan has masks, nothing without them leaves this process.
        """
        plan = replace(plan, states=states)
        self._client.ahead.begin([*chain.from_iterable(groups[1:]), *upcoming])
        updates = [update for group in groups for update in self._client.fit_together(plan, group)]
        return sent(updates, plan, self._client, self._seed), process_memory()

    def answer(
        self, step: MaskingStep, groups: Sequence[Sequence[int]], inbox: Mapping[int, Mapping[int, bytes]]
    ) -> tuple[list[MaskingAnswer], ProcessMemory]:
        """Answer a step of secure aggregation for groups of clients; `inbox` is the step's, of these clients alone."""
        step = replace(step, inbox=inbox)
        clients = [client_id for group in groups for client_id in group]
        return [answer(step, client_id, self._seed, self._name) for client_id in clients], process_memory()

    def probe(self, package: ClientPackage, gpu_part: float) -> MemoryUse:
        """Measure what memory a client of this package needs, and how much there is for such actors on this GPU."""
        return probe(package, gpu_part)

    def peak_memory_bytes(self) -> int:
        """Return this process' peak resident memory, shared pages included."""
        return process_peak_memory_bytes()
