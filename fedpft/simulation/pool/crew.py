"""The actors of a pool: they all hold the same proxy, and one that fails makes room for a fresh one."""

import math
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayTaskError

from fedpft.config import ConfigError, PoolConfig
from fedpft.federated.memory import ProcessMemory
from fedpft.federated.package import ClientPackage
from fedpft.interrupt import RunStoppedError
from fedpft.models.patches import HeldWeights, num_bytes
from fedpft.simulation.cluster import cluster_nodes, room_for_actors
from fedpft.simulation.pool.client_actor import ClientActor
from fedpft.simulation.pool.waiting import Job
from fedpft.simulation.reasons import reason

ROOM_CHECK_SECONDS = 5.0
"""How often to look whether there still is room for actors that are starting."""


@dataclass(eq=False)
class Task:
    """What an actor was asked to do."""

    reference: Any
    """To the result."""
    limit: float
    """Seconds that it may take; an actor that takes longer has failed."""
    jobs: Sequence[Job] = ()
    """The clients that it trains, one after the other; none: it takes over the proxy."""


@dataclass(eq=False)
class Actor:
    """The driver's view of one actor, which does what it was asked to in that order."""

    number: int
    """Grows with every start; never used twice."""
    handle: Any = None
    node: str | None = None
    """Name of its machine; None: it has not started yet."""
    tasks: deque[Task] = field(default_factory=deque)
    """What it is doing, and what it will do after that; empty: it is idle."""
    deadline: float = math.inf
    """When it must be done with the first of them, on the monotonic clock."""
    memory: ProcessMemory | None = None
    """After its last client."""

    @property
    def name(self) -> str:
        """Name in reports, of the process itself too."""
        return f"actor-{self.number}"

    @property
    def jobs(self) -> list[Job]:
        """The clients of all its tasks."""
        return [job for task in self.tasks for job in task.jobs]

    def start(self, reference: Any, *, limit: float | None, jobs: Sequence[Job] = ()) -> None:
        """Note what the actor was asked to do next, and how many seconds it has for that (None: no limit)."""
        self.tasks.append(Task(reference, math.inf if limit is None else limit, jobs))
        if len(self.tasks) == 1:
            self._watch()

    def end(self) -> Task:
        """Return its first task, which is over; the time for the next one begins."""
        task = self.tasks.popleft()
        self._watch()
        return task

    def _watch(self) -> None:
        self.deadline = time.monotonic() + self.tasks[0].limit if self.tasks else math.inf


class Crew:
    """Starts, equips and replaces actors.

    Whatever an actor is asked to do can fail: it dies, with or without its node, raises, or does not answer in time. It
    is killed then and never used again; a fresh one takes its place, with the package and all changes of weights so
    far. While the cluster has no room for it, or when actors fail to start time after time, the crew goes on with fewer
    and says so.

    Args:
        config: size of the actors, limits, retries.
        size: how many actors to start, and to keep up as far as there is room.
        strategy: where they get their places: Ray's scheduling strategy.

    """

    def __init__(self, config: PoolConfig, size: int, strategy: Any = "DEFAULT") -> None:
        self.actors: list[Actor] = []
        self.next_number = 0
        self._package: ClientPackage | None = None
        self._weights_ref: Any = None
        self._appoint(config, size, strategy)

    def move(self, config: PoolConfig, size: int, strategy: Any) -> None:
        """Replace all actors by others of another size, in other places; wait until they hold what those held."""
        self.close()
        self._appoint(config, size, strategy)
        self._settle()

    def _appoint(self, config: PoolConfig, size: int, strategy: Any) -> None:
        self._config, self._size = config, size
        self._failed_starts, self._announced = 0, size
        threads = str(config.threads_per_client)
        self._remote = ray.remote(
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpu_claim,
            scheduling_strategy=strategy,
            runtime_env={
                "env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
            },
        )(ClientActor)
        self.heal()

    def equip(self, package: ClientPackage) -> None:
        """Give every actor proxy and data, through the object store; wait until they have them."""
        self._package, self._held = package, HeldWeights(package.proxy.weights)
        self._store()
        for actor in self.actors:
            self._receive(actor)
        self._settle()

    def replace_weights(self, weights: Mapping[str, np.ndarray]) -> int:
        """Give every actor changed weights; wait until they have them, and return the bytes that each node gets.

        Only what differs is sent. A GPU's actor writes it into its own memory. On a CPU one actor of each node makes
        whole weights of it, which all of the node read, as they do those of the package.
        """
        changes = self._held.changes(weights)
        self._weights_ref, sent = None, ray.put(changes)
        whole = {} if self._config.gpu_claim else self._whole_by_node(sent)
        for actor in self.actors:
            task = actor.handle.replace_weights.remote(whole.get(actor.node, sent))
            actor.start(task, limit=self._config.start_timeout_seconds)
        self._settle()
        return num_bytes(changes)

    def _whole_by_node(self, changes: Any) -> dict[str | None, Any]:
        """Return node -> whole weights in its memory; of a node whose actor fails in it none, which will be seen."""
        makers = {actor.node: actor for actor in self.actors[::-1]}
        made = {node: actor.handle.patched.remote(changes) for node, actor in makers.items()}
        found = {}
        for node, (is_there, weights) in made.items():
            with suppress(Exception):
                ray.get(is_there, timeout=self._config.start_timeout_seconds)
                found[node] = weights
        return found

    def heal(self) -> None:
        """Start the actors that are missing, as far as the cluster has room for them; at least one in any case."""
        missing = self._size - len(self.actors)
        if missing > 0:
            room = room_for_actors(self._config, cluster_nodes()) - len(self.actors)
            for _ in range(max(min(missing, room), 0 if self.actors else 1)):
                self._start()
        if len(self.actors) != self._announced:
            self._announced = len(self.actors)
            warnings.warn(f"pool: goes on with {self._announced} actor(s)", stacklevel=2)

    def discard(self, actor: Actor) -> None:
        """Kill an actor, whatever it is doing."""
        self.actors.remove(actor)
        ray.kill(actor.handle)

    @property
    def is_training(self) -> bool:
        """Whether an actor trains a client."""
        return any(actor.jobs for actor in self.actors)

    def discard_training(self) -> None:
        """Kill the actors that train clients."""
        for actor in [actor for actor in self.actors if actor.jobs]:
            self.discard(actor)

    def wait(self) -> tuple[Actor, Sequence[Job], Any] | None:
        """Wait until an actor ends what it does, or runs out of time.

        Returns:
            The actor, the clients that it trained and the result, or the exception in its place. None if it took over
            the proxy instead (one that failed in that is replaced already), or if nothing happened for a while.

        Raises:
            RunStoppedError: not one actor can be started.

        """
        busy = {actor.tasks[0].reference: actor for actor in self.actors if actor.tasks}
        first_due = min(busy.values(), key=lambda actor: actor.deadline)
        patience = min(first_due.deadline - time.monotonic(), ROOM_CHECK_SECONDS)
        done, _ = ray.wait(list(busy), timeout=max(0.0, patience))
        if not done and time.monotonic() < first_due.deadline:
            self._give_up_without_room()
            return None
        actor = busy[done[0]] if done else first_due
        task = actor.end()
        result: Any
        try:
            result = ray.get(task.reference) if done else TimeoutError(f"no answer within {task.limit:g} s")
        except Exception as error:
            result = error
        if task.jobs:
            return actor, task.jobs, result
        if isinstance(result, Exception):
            self._replace_unequipped(actor, result)
        else:
            actor.node, self._failed_starts = result, 0
        return None

    def close(self) -> None:
        """Kill all actors."""
        while self.actors:
            self.discard(self.actors[-1])

    def _start(self) -> None:
        actor = Actor(self.next_number)
        config = self._config
        arithmetic = (config.threads_per_client, config.deterministic, config.matmul_precision)
        actor.handle = self._remote.remote(actor.name, *arithmetic)
        self.next_number += 1
        self.actors.append(actor)
        if self._package is not None:
            self._receive(actor)

    def _receive(self, actor: Actor) -> None:
        if self._weights_ref is None:
            self._weights_ref = ray.put(self._held.changed)
        task = actor.handle.receive.remote(self._package_ref, self._weights_ref)
        actor.start(task, limit=self._config.start_timeout_seconds)

    def _store(self) -> None:
        self._package_ref = ray.put(self._package)
        self._weights_ref = None
        # the driver's copy from here on: a view of the store's memory, which stays while somebody reads it
        self._package = ray.get(self._package_ref)

    def _settle(self) -> None:
        while any(actor.tasks for actor in self.actors):
            self.wait()

    def _give_up_without_room(self) -> None:
        """Kill those that wait for a place which is gone: a node's actors are known to be dead before the node is."""
        starting = [actor for actor in self.actors if actor.node is None]
        if starting:
            excess = len(self.actors) - max(1, room_for_actors(self._config, cluster_nodes()))
            for actor in starting[::-1][: max(0, excess)]:
                self.discard(actor)
            self.heal()

    def _replace_unequipped(self, actor: Actor, error: Exception) -> None:
        self.discard(actor)
        if isinstance(error, RayTaskError) and isinstance(error.cause, ConfigError):
            raise error.cause  # another try, or another actor there, would find the same
        self._failed_starts += 1
        if isinstance(error, ObjectLostError):
            self._store()
        if isinstance(error, TimeoutError) or self._failed_starts > self._config.max_retries:
            self._size = len(self.actors)  # another try would fail, too, or wait as long again
        if self._size == 0:
            raise RunStoppedError(f"pool: no actor can be started: {reason(error)}") from error
        self.heal()
