"""RayClientPool: clients train in Ray actors that live for the whole run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray

from fedpft.config import PoolConfig
from fedpft.federated.client import ClientPackage
from fedpft.federated.messages import ClientUpdate, RoundPlan
from fedpft.simulation.client_actor import ClientActor
from fedpft.simulation.cluster import cluster_nodes, connect, num_actors


class RayClientPool:
    """A `ClientPool` on Ray.

    What is large travels once: the package (proxy and data) and each change of the proxy are put in the object store
    once for all actors, the plan with its adapter once per round. A reply is one flat vector, counts and two numbers.

    Args:
        config: number and size of the actors, address of the cluster.
        clients_per_round: `per_client` starts that many actors, `auto` no more.

    Raises:
        ConfigError: no cluster, or one that can never hold the actors; nothing was started on it then.

    """

    def __init__(self, config: PoolConfig, clients_per_round: int) -> None:
        self._owns_connection = connect(config.address)
        try:
            self.num_actors = num_actors(config, clients_per_round, cluster_nodes())
        except Exception:
            self.close()
            raise
        threads = str(config.threads_per_client)
        remote = ray.remote(
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
            runtime_env={
                "env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
            },
        )(ClientActor)
        # starts importing now, while the server still builds and aligns the proxy
        self._actors: list[Any] = [
            remote.remote(f"actor-{index}", config.threads_per_client) for index in range(self.num_actors)
        ]

    def broadcast(self, package: ClientPackage) -> None:
        """Put proxy and data in the object store once; every actor builds its module."""
        reference = ray.put(package)
        ray.get([actor.receive.remote(reference) for actor in self._actors])

    def replace_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Put changed weights in the object store once; every actor takes them over."""
        reference = ray.put(dict(weights))
        ray.get([actor.replace_weights.remote(reference) for actor in self._actors])

    def run(self, plan: RoundPlan, client_ids: Sequence[int]) -> Iterator[ClientUpdate]:
        """Keep every actor busy with one client at a time; yield updates as they arrive."""
        reference = ray.put(plan)
        waiting = list(reversed(client_ids))
        running: dict[Any, Any] = {}

        def start_next(actor: Any) -> None:
            if waiting:
                running[actor.fit.remote(reference, waiting.pop())] = actor

        for actor in self._actors:
            start_next(actor)
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            start_next(running.pop(done[0]))
            yield ray.get(done[0])

    def peak_memory_bytes(self) -> list[int]:
        """Ask each actor."""
        return ray.get([actor.peak_memory_bytes.remote() for actor in self._actors])

    def close(self) -> None:
        """End the actors, and Ray if this pool started or joined it."""
        for actor in getattr(self, "_actors", []):
            ray.kill(actor)
        self._actors = []
        if self._owns_connection:
            ray.shutdown()
