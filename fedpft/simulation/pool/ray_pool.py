"""RayClientPool: clients train in Ray actors that live for the whole run, or as long as they are sound."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayError

from fedpft.config import PoolConfig
from fedpft.data.shared import SharedRows
from fedpft.federated.grouping import even_parts, groups
from fedpft.federated.memory import ProcessMemory
from fedpft.federated.messages import ClientFailure, ClientUpdate, MaskingAnswer, MaskingStep, RoundPlan
from fedpft.federated.package import ClientPackage
from fedpft.simulation.cluster import (
    cluster_nodes,
    connect,
    dashboard_url,
    num_actors,
    object_store_bytes,
    with_first_claim,
)
from fedpft.simulation.metrics import RayMetrics
from fedpft.simulation.pool.crew import Actor, Crew
from fedpft.simulation.pool.packing import is_out_of_memory
from fedpft.simulation.pool.reservation import reserve
from fedpft.simulation.pool.waiting import Job, Pace, Waiting
from fedpft.simulation.reasons import reason
from fedpft.tracking.trackers import Tracker

MAX_TASKS = 2
"""Of an actor: one in work, one that lies there when that is done."""

_PEAK_TIMEOUT_SECONDS = 10


class RayClientPool:
    """A `ClientPool` on Ray.

    What is large travels once: the package (proxy and data) and each change of the proxy are put in the object store
    once for all actors, the plan with its adapter once per round. A client's own state goes with its order. A reply is
    one flat vector, or two with a state, counts and some numbers.

    On a cluster that others use, too, the pool waits until there is room for its actors, or starts with fewer (see
    `reserve`); from then on the room is its own.

    A client that fails, whatever the reason, costs its actor: a fresh one takes that one's place (see `Crew`) and the
    client is tried there. When all attempts are used up its failure is yielded in place of an update; for one that runs
    out of memory the first is the last, as the next would be no better off (see `PackedPool`).

    Args:
        config: number and size of the actors, limits, address of the cluster.
        clients_per_round: `per_client` starts that many actors, `auto` no more.

    Raises:
        ConfigError: no cluster, one that can never hold the actors, or one whose other users left no room for them in
            time; nothing was started on it then.

    """

    def __init__(self, config: PoolConfig, clients_per_round: int) -> None:
        self._pace = Pace()
        self._owns_connection = connect(config.address)
        try:
            nodes = cluster_nodes()
            self._config = config = with_first_claim(config, nodes)
            self._places = reserve(config, num_actors(config, clients_per_round, nodes))
            # the actors start importing now, while the server still builds and aligns the proxy
            self._crew = Crew(config, self._places.size, self._places.strategy)
        except BaseException:  # also the Ctrl-C of who waits for places
            self.close()
            raise

    @property
    def num_actors(self) -> int:
        """How many actors there are, those just starting included."""
        return len(self._crew.actors)

    @property
    def dashboard(self) -> str | None:
        """The URL of the cluster's dashboard, as the nodes see it."""
        return dashboard_url()

    def trackers(self, run: str) -> list[Tracker]:
        """Return what tells the cluster of the run's numbers, if others started it: one of our own has no metrics."""
        return [] if self._config.address is None else [RayMetrics(run, lambda: self.num_actors)]

    def broadcast(self, package: ClientPackage) -> None:
        """Give every actor proxy and data; wait until they have them."""
        self._partition, self._settings = package.partition, package.settings
        self._reads_rows = isinstance(package.train, SharedRows)
        self._crew.equip(package)

    def replace_weights(self, weights: Mapping[str, np.ndarray]) -> int:
        """Give every actor changed weights; wait until they have them."""
        return self._crew.replace_weights(weights)

    def run(self, plan: RoundPlan, client_ids: Sequence[int]) -> Iterator[ClientUpdate | ClientFailure]:
        """Start clients in the given order, several small ones at a time; yield updates and failures as they arrive.

        Those that train together are sent together (see `federated.grouping`). An actor's next clients are with it
        before it is done with the last ones: it waits for nobody.
        """
        self._pace.forget()
        yield from self._ordered(replace(plan, states={}), plan.states, self._jobs(client_ids))

    def ask(self, step: MaskingStep, client_ids: Sequence[int]) -> Iterator[MaskingAnswer | ClientFailure]:
        """Ask in actors, in as many parts as there are; faults cost what they do in :meth:`run`."""
        parts = even_parts(client_ids, max(1, ceil(len(client_ids) / self.num_actors)))
        jobs = [Job(tuple(part), sum(map(self._num_examples, part))) for part in parts]
        yield from self._ordered(replace(step, inbox={}), step.inbox, jobs)

    def _ordered(self, for_all: RoundPlan | MaskingStep, own: Mapping[int, Any], jobs: Sequence[Job]) -> Iterator[Any]:
        """Have an order for all carried out for each client, with what is for it alone."""
        waiting, reference = Waiting(jobs, self._pace), ray.put(for_all)
        method = "fit" if isinstance(for_all, RoundPlan) else "answer"
        self._crew.heal()
        try:
            self._start_clients(waiting, method, reference, own)
            while waiting or self._crew.is_training:
                ended = self._crew.wait()
                if ended is not None and isinstance(ended[2], ObjectLostError):
                    reference = ray.put(for_all)
                outcomes = [] if ended is None else self._judge(*ended, for_all.round_index, waiting)
                self._start_clients(waiting, method, reference, own)
                yield from outcomes
        finally:  # whoever stopped listening wants no more of this round
            self._crew.discard_training()

    def memory(self) -> Mapping[str, int]:
        """Return what each actor held after its last client (the largest), and the cluster's object stores now."""
        held = [actor.memory for actor in self._crew.actors if actor.memory is not None]
        gpu_bytes = max((memory.gpu_bytes for memory in held), default=0)
        return {
            "actor_rss_bytes_max": max((memory.rss_bytes for memory in held), default=0),
            **({"actor_gpu_bytes_max": gpu_bytes} if gpu_bytes else {}),
            "object_store_bytes": object_store_bytes(),
        }

    def peak_memory_bytes(self) -> list[int]:
        """Ask each actor; those that are just starting, or do not answer, are left out."""
        tasks = [actor.handle.peak_memory_bytes.remote() for actor in self._crew.actors if not actor.tasks]
        done = ray.wait(tasks, num_returns=len(tasks), timeout=_PEAK_TIMEOUT_SECONDS)[0] if tasks else []
        peaks = []
        for task in done:
            with suppress(RayError):
                peaks.append(ray.get(task))
        return peaks

    def close(self) -> None:
        """End the actors, and Ray if this pool started or joined it."""
        if hasattr(self, "_crew"):
            self._crew.close()
        if hasattr(self, "_places"):
            self._places.release()
        if self._owns_connection:
            ray.shutdown()

    def _jobs(self, client_ids: Sequence[int]) -> list[Job]:
        together = groups(client_ids, self._settings, self.num_actors, self._num_examples)
        return [Job(group, sum(self._num_examples(client_id) for client_id in group)) for group in together]

    def _num_examples(self, client_id: int) -> int:
        known = 0 <= client_id < self._partition.num_clients  # one that does not exist fails where it is trained
        return len(self._partition.shard(client_id)) if known else 0

    def _start_clients(
        self, waiting: Waiting, method: str, reference: "ray.ObjectRef[Any]", own: Mapping[int, Any]
    ) -> None:
        newest = max(actor.number for actor in self._crew.actors)
        for num_tasks in range(MAX_TASKS):  # nobody gets a second task before everybody has a first
            for actor in self._crew.actors:
                if len(actor.tasks) == num_tasks and len(actor.jobs) >= num_tasks:
                    jobs = waiting.take(actor=actor.number, newest=newest, num_actors=self.num_actors)
                    if jobs:
                        together = [job.client_ids for job in jobs]
                        theirs = {client: own[client] for ids in together for client in ids if client in own}
                        ahead = [waiting.first(self.num_actors)] if self._reads_rows and method == "fit" else []
                        task = getattr(actor.handle, method).remote(reference, together, theirs, *ahead)
                        actor.start(task, limit=self._limit(jobs), jobs=jobs)

    def _limit(self, jobs: Sequence[Job]) -> float | None:
        """Return how many seconds a task may take: what a client may, for each of those that train together."""
        of_one = self._config.client_timeout_seconds
        return None if of_one is None else of_one * max(len(job.client_ids) for job in jobs)

    def _judge(
        self, actor: Actor, jobs: Sequence[Job], result: Any, round_index: int, waiting: Waiting
    ) -> Sequence[ClientUpdate | MaskingAnswer | ClientFailure]:
        """Return what the clients sent or a final failure; nothing of those who are to be tried again."""
        if not isinstance(result, Exception):
            updates, memory = result
            self._pace.note(update for update in updates if isinstance(update, ClientUpdate))
            self._note_memory(actor, memory, waiting)
            attempts = [job.attempts + 1 for job in jobs for _ in job.client_ids]
            return [replace(update, attempts=number) for update, number in zip(updates, attempts, strict=True)]
        first_fresh = self._crew.next_number
        self._replace(actor, waiting)
        if sum(len(job.client_ids) for job in jobs) > 1:  # each of them alone will show who fails
            waiting.put_back([suspect for job in jobs for suspect in job.apart(self._num_examples)])
            return []
        (job,) = jobs
        job.attempts += 1
        job.first_actor = first_fresh
        if job.attempts > self._config.max_retries or is_out_of_memory(result):
            return [self._failure(round_index, actor, job, result)]
        waiting.put_back(jobs)
        return []

    def _note_memory(self, actor: Actor, memory: ProcessMemory, waiting: Waiting) -> None:
        """Replace an actor that holds too much."""
        limit, is_first = self._config.max_actor_memory_gigabytes, actor.memory is None
        actor.memory = memory
        if limit is not None and memory.rss_bytes > 1e9 * limit:
            if is_first:
                text = f"pool.max_actor_memory_gigabytes = {limit:g} is less than an actor needs for its first client"
                warnings.warn(text, stacklevel=2)
            self._replace(actor, waiting)

    def _replace(self, actor: Actor, waiting: Waiting) -> None:
        """Start a fresh actor in place of one; the clients that it was still to train wait again."""
        waiting.put_back(actor.jobs)
        self._crew.discard(actor)
        self._crew.heal()

    @staticmethod
    def _failure(round_index: int, actor: Actor, job: Job, error: Exception) -> ClientFailure:
        return ClientFailure(
            round_index=round_index,
            client_id=job.client_ids[0],
            attempts=job.attempts,
            actor=actor.name,
            node=actor.node or "an unknown node",
            reason=reason(error),
            traceback=re.sub(r"\x1b\[\d+m", "", str(error)),  # Ray's are coloured
            out_of_memory=is_out_of_memory(error),
        )
