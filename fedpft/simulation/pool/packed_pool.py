"""PackedPool: as many actors as memory holds, and fewer when it turns out that they were too many."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil

import ray
from ray.exceptions import RayError

from fedpft.config import PoolConfig
from fedpft.federated.messages import ClientFailure, ClientUpdate, RoundPlan
from fedpft.federated.package import ClientPackage
from fedpft.simulation.cluster import cluster_nodes, num_actors
from fedpft.simulation.pool.packing import MemoryUse, gpu_share
from fedpft.simulation.pool.ray_pool import RayClientPool
from fedpft.simulation.pool.reservation import reserve
from fedpft.simulation.reasons import reason


class PackedPool(RayClientPool):
    """A `RayClientPool` that fits itself to the memory of its devices.

        start       gpus_per_actor = auto: one actor on each GPU, which imports while the server builds the proxy
        broadcast   they try the longest examples -> actors that a GPU, or the RAM for `actors = auto`, holds
        run         clients that ran out of memory wait for the end of the round; then there is one actor less on each
                    GPU (or on the CPUs), all of them fresh, and those clients are tried there one by one, each alone

    Args:
        config: see `RayClientPool`.
        clients_per_round: the same.
        say: takes a line about how many actors there are, and why.

    """

    def __init__(
        self, config: PoolConfig, clients_per_round: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._say, self._too_large = say, set[int]()
        self._most = config.actors if isinstance(config.actors, int) else clients_per_round
        packs_gpus = config.gpus_per_actor == "auto"
        super().__init__(replace(config, actors="auto") if packs_gpus else config, self._most)
        by_ram = config.actors == "auto" and not config.gpu_claim
        self._is_to_pack = (packs_gpus or by_ram) and not self._places.is_inherited
        self._gpu_part = min(1.0, self._config.gpu_claim) if packs_gpus else 1.0
        """Of each GPU that is packed: what the server leaves."""

    def broadcast(self, package: ClientPackage) -> None:
        """Try how many actors fit, then give proxy and data to so many."""
        if self._is_to_pack:
            self._pack(package)
            self._is_to_pack = False
        super().broadcast(package)

    def run(self, plan: RoundPlan, client_ids: Sequence[int]) -> Iterator[ClientUpdate | ClientFailure]:
        """See `RayClientPool`; a client that runs out of memory is tried once more, alone and with fewer actors."""
        starved = []
        for outcome in super().run(plan, client_ids):
            if _is_starved(outcome) and outcome.client_id not in self._too_large:
                starved.append(outcome)
            else:
                yield outcome
        if starved:
            self._back_off([failure.client_id for failure in starved])
        for failure in starved:
            for outcome in super().run(plan, [failure.client_id]):
                if _is_starved(outcome):
                    self._too_large.add(outcome.client_id)  # fewer actors do not help it
                yield replace(outcome, attempts=failure.attempts + outcome.attempts)

    def _pack(self, package: ClientPackage) -> None:
        size, config, nodes = self.num_actors, self._config, cluster_nodes()
        use = self._try(package)
        if use is None:
            return
        if config.gpu_claim:
            cpus = max(node.cpus / config.cpus_per_actor / ceil(node.gpus) for node in nodes if node.gpus)
            per_gpu = min(use.num_actors, ceil(self._most / size), max(1, int(cpus)))
            config = replace(config, gpus_per_actor=gpu_share(per_gpu, self._gpu_part))
            where = f"on {size} GPU(s)"
        else:
            claim = max(config.memory_per_actor_gigabytes, use.claim / 1e9)
            config, where = replace(config, memory_per_actor_gigabytes=claim), f"instead of {size}"
        wanted = num_actors(config, self._most, nodes)
        if config.gpu_claim or wanted < size:
            self._say(f"probed {use}: {wanted} actor(s) {where}")
        if wanted != size:
            self._move(config, wanted)

    def _try(self, package: ClientPackage) -> MemoryUse | None:
        """Let an actor on each GPU, or one on a CPU, train the hungriest client; return what is scarcest."""
        reference = ray.put(package)
        actors = self._crew.actors if self._config.gpu_claim else self._crew.actors[:1]
        tries = [actor.handle.probe.remote(reference, self._gpu_part) for actor in actors]
        try:
            return min(ray.get(tries, timeout=self._config.start_timeout_seconds), key=lambda use: use.num_actors)
        except RayError as error:
            why = reason(error)
            warnings.warn(f"pool: goes on with {self.num_actors} actor(s), the probe failed: {why}", stacklevel=3)
            return None

    def _back_off(self, starved: Sequence[int]) -> None:
        """Go on with one actor less on each GPU, or in all, while there are more than one."""
        config, size = self._config, self.num_actors
        per_gpu = round(self._gpu_part / config.gpu_claim) if 0 < config.gpu_claim < 1 else 1
        if self._places.is_inherited or not config.gpu_claim:
            wanted = max(1, size - 1)
        elif per_gpu > 1:
            config = replace(config, gpus_per_actor=gpu_share(per_gpu - 1, self._gpu_part), actors="auto")
            wanted = num_actors(config, size - 1, cluster_nodes())
        else:
            wanted = size
        again = f"client(s) {', '.join(map(str, starved))} tried again alone"
        self._say(f"out of memory: {again}; the pool goes on with {wanted} of {size} actors")
        if wanted != size:
            self._move(config, wanted)

    def _move(self, config: PoolConfig, size: int) -> None:
        """Give the places back and claim others, for `size` actors or as many as others leave."""
        self._config = replace(config, actors="auto")
        self._crew.close()
        if not self._places.is_inherited:
            self._places.release()
            self._places = reserve(self._config, size)
            size = self._places.size
        self._crew.move(self._config, size, self._places.strategy)


def _is_starved(outcome: ClientUpdate | ClientFailure) -> bool:
    return isinstance(outcome, ClientFailure) and outcome.out_of_memory
