"""Join or start a Ray cluster, and check that it can ever hold the actors that a run asks for."""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import psutil
import ray
import torch
from ray._private.worker import get_dashboard_url
from ray.job_config import JobConfig

from fedpft.config import ConfigError, PoolConfig
from fedpft.interrupt import RunStoppedError, kept_handlers, unmasked
from fedpft.simulation.starting import check_address, deaf_children, local_settings, refusal


@dataclass(frozen=True)
class Node:
    """One node's resources in total, or what is left of them."""

    cpus: float
    gpus: float
    """Where it is no whole number, the rest is a part of one GPU."""
    memory_bytes: float = math.inf
    """What was free when Ray started on it, less its object store."""

    def fits(self, cpus_per_actor: float, gpus_per_actor: float, bytes_per_actor: float = 0.0) -> int:
        """Return how many actors the node holds when it is empty."""
        slack = 1e-6  # 1 / 0.1 must be 10 actors in floating point too
        room = int(self.cpus / cpus_per_actor + slack)
        if bytes_per_actor:
            room = int(min(room, self.memory_bytes / bytes_per_actor))
        if gpus_per_actor == 0:
            return room
        if gpus_per_actor < 1:  # actors share a GPU, but none is spread over two
            whole = int(self.gpus + slack)
            rest = max(0.0, self.gpus - whole)
            return min(room, whole * int(1 / gpus_per_actor + slack) + int(rest / gpus_per_actor + slack))
        return min(room, int(self.gpus / gpus_per_actor + slack))


def connect(address: str | None) -> bool:
    """Start Ray on this machine (`address` None) or join a cluster; return whether this call did either.

    Raises:
        ConfigError: no cluster at that address, or no folder for a Ray on this machine.
        RunStoppedError: Ray does not start.

    """
    if ray.is_initialized():
        return False
    if address is not None:
        check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # a connection that comes and goes is Ray's business; what goes wrong with an actor reaches us as an exception
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("FEDPFT_VERBOSE"):
        ray._private.worker.print_to_stdstream = _print_nothing
    job = JobConfig()
    job._py_driver_sys_path = _FoldersAsHere()
    own = {} if address else local_settings()
    try:
        with kept_handlers(), unmasked():  # Ray's own would end the process without closing what it knows nothing of
            if address is None:
                with deaf_children():
                    ray.init(address="local", include_dashboard=False, job_config=job, **own, **quiet)
            else:
                ray.init(address=address, job_config=job, **quiet)
    except Exception as error:  # of every kind, Exception itself too
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if address is not None:
            raise refusal(address, first) from None
        with suppress(Exception):
            ray.shutdown()  # what has started of it
        remedy = "pool.kind=sequential does without, RAY_TMPDIR=FOLDER puts its files elsewhere"
        raise RunStoppedError(f"Ray does not start on this machine ({first}); {remedy}") from None
    return True


class _FoldersAsHere(list[str]):
    """Folders from which workers import before all others: of those that Ray adds, only what this process imports from.

    Ray adds the working folder, in which a `datasets.py` of the user's would stand in for the library.
    """

    def extend(self, folders: Iterable[str]) -> None:
        super().extend(folder for folder in folders if folder in sys.path)


def _print_nothing(*_: Any, **__: Any) -> None:
    """Stand in for what prints tracebacks of workers, with each actor that does not start."""


def cluster_nodes() -> list[Node]:
    """Return the living nodes of the connected cluster, without what this process has claimed itself."""
    context = ray.get_runtime_context()
    is_worker = context.worker.mode == ray.WORKER_MODE
    own, here = (context.get_assigned_resources(), context.get_node_id()) if is_worker else ({}, None)
    return [
        node_with(
            {
                name: amount - (own.get(name, 0.0) if node["NodeID"] == here else 0.0)
                for name, amount in node["Resources"].items()
            }
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def node_with(resources: Mapping[str, float]) -> Node:
    """Return a node from what Ray says of it: in total, or what is free."""
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("memory", 0.0))


def with_first_claim(config: PoolConfig, nodes: list[Node]) -> PoolConfig:
    """Return the settings with which actors start before it is known how many a GPU holds: one on each.

    Where the server has a part of the only GPU, that one actor claims the rest.
    """
    largest = max((node.gpus for node in nodes), default=0.0)
    is_part = config.gpus_per_actor == "auto" and 0 < largest < 1
    return replace(config, gpus_per_actor=largest) if is_part else config


def dashboard_url() -> str | None:
    """Return where the connected cluster's dashboard is, as the nodes see it; None if it has none."""
    address = get_dashboard_url()
    return f"http://{address}" if address else None


def room_for_actors(config: PoolConfig, nodes: list[Node]) -> int:
    """Return how many actors the nodes hold when they are empty."""
    return sum(node.fits(config.cpus_per_actor, config.gpu_claim, config.memory_claim) for node in nodes)


def object_store_bytes() -> int:
    """Return how much of the cluster's object stores is in use."""
    name = "object_store_memory"
    return int(ray.cluster_resources().get(name, 0) - ray.available_resources().get(name, 0))


def actors_that_fit(config: PoolConfig, clients_per_round: int, server_gpus: Callable[[float], float]) -> int:
    """Return :func:`num_actors` of the configured cluster; a cluster on this machine is looked at, not started.

    Args:
        config: the pool's.
        clients_per_round: see :func:`num_actors`.
        server_gpus: GPUs of this machine -> how many of them the server claims before the actors.

    Raises:
        ConfigError: see :func:`num_actors`.

    """
    if config.address is None and not ray.is_initialized():
        memory_bytes = psutil.virtual_memory().available
        gpus = torch.cuda.device_count()
        this_machine = Node(os.cpu_count() or 1, gpus - server_gpus(gpus), memory_bytes)
        return num_actors(config, clients_per_round, [this_machine])
    owned = connect(config.address)
    try:
        return num_actors(config, clients_per_round, cluster_nodes())
    finally:
        if owned:
            ray.shutdown()


def num_actors(config: PoolConfig, clients_per_round: int, nodes: list[Node]) -> int:
    """Return how many actors to start: what is asked for, or with an `auto` for them or their GPUs at most what fits.

    Raises:
        ConfigError: the cluster can never hold that many; the message names both numbers.

    """
    capacity = room_for_actors(config, nodes)
    wanted = config.actors if isinstance(config.actors, int) else clients_per_round
    if "auto" in (config.actors, config.gpus_per_actor):
        wanted = max(1, min(capacity, wanted))
    if wanted > capacity:
        need = f"{wanted} actors x {config.cpus_per_actor:g} CPU"
        have = f"{sum(n.cpus for n in nodes):g} CPU"
        if config.gpu_claim:
            need += f" and {config.gpu_claim:g} GPU"
            have += f" and {sum(n.gpus for n in nodes):g} GPU"
        if sum(node.fits(config.cpus_per_actor, config.gpu_claim) for node in nodes) >= wanted:  # memory is what lacks
            need += f" and {config.memory_claim / 1e9:g} GB"
            have += f" and {sum(n.memory_bytes for n in nodes) / 1e9:.1f} GB"
        raise ConfigError(
            f"pool.actors: asks {need}, the cluster has {have} on {len(nodes)} node(s), room for {capacity} actors; "
            "lower pool.actors, pool.cpus_per_actor or pool.gpus_per_actor"
        )
    return wanted
