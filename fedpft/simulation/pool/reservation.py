"""Room for all actors of a run, claimed at once: two runs on one cluster never wait for each other's halves.

The claim is a placement group: Ray gives all of its places or none, and what is in it no other run gets, not even while
an actor is replaced. PACK, because a node holds the proxy once for all its actors.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ray._private.state import available_resources_per_node
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedpft.config import ConfigError, PoolConfig
from fedpft.simulation.cluster import Node, cluster_nodes, node_with, room_for_actors

LOOK_SECONDS = 1.0
"""How often to look what has become free."""
FIRST_LINE_SECONDS = 5.0
"""Of waiting, before it is told; each further line after twice the time."""


@dataclass(frozen=True)
class Reservation:
    """Places for `size` actors, held until released."""

    size: int
    group: PlacementGroup
    is_inherited: bool = False
    """It is the group that the driver itself is in, and ends with it."""

    @property
    def strategy(self) -> PlacementGroupSchedulingStrategy:
        """How an actor gets one of the places."""
        return PlacementGroupSchedulingStrategy(self.group)

    def release(self) -> None:
        """Give the places back, unless they were inherited; whatever is in them ends."""
        if not self.is_inherited:
            remove_placement_group(self.group)


def reserve(config: PoolConfig, wanted: int) -> Reservation:
    """Claim places for `wanted` actors, or wait for them and say so; `auto` takes those that are free, at least one.

    A driver with a placement group of its own, a sweep's trial, has them already: all of it but the driver's place.

    Raises:
        ConfigError: `pool.start_timeout_seconds` passed; nothing is claimed then.

    """
    if (group := get_current_placement_group()) is not None:
        return Reservation(group.bundle_count - 1, group, is_inherited=True)
    start, next_line = time.monotonic(), FIRST_LINE_SECONDS
    claim = _claim(config, wanted)
    try:
        while True:
            free = free_nodes()  # before the wait: afterwards what is gone may be what this claim was just given
            if claim.group.wait(min(LOOK_SECONDS, config.start_timeout_seconds)):
                break
            waited = time.monotonic() - start
            if config.actors == "auto":
                size = max(1, min(wanted, room_for_actors(config, free)))
                if size != claim.size:
                    if claim.group.wait(min(LOOK_SECONDS, config.start_timeout_seconds)):
                        break  # what was no longer free was this very claim
                    claim.release()
                    claim = _claim(config, size)
            line = f"{_need(config, claim.size)}; the cluster has {_free(config, free)} free"
            if waited >= config.start_timeout_seconds:
                advice = "lower pool.actors, or wait for longer: pool.start_timeout_seconds"
                raise ConfigError(f"pool.actors: waited {waited:.0f} s for {line}; {advice}")
            if waited >= next_line:
                warnings.warn(f"pool: waiting for {line}; since {waited:.0f} s", stacklevel=2)
                next_line *= 2
    except BaseException:
        claim.release()
        raise
    if claim.size < wanted:
        occupied = "others hold the rest of the cluster"
        warnings.warn(f"pool: starts {claim.size} actor(s) instead of {wanted}: {occupied}", stacklevel=2)
    return claim


def free_nodes() -> list[Node]:
    """Return what nobody has claimed on each living node.

    Of several GPUs whole ones alone: whether the rest of the sum is one GPU's, Ray does not say.
    """
    nodes = map(node_with, available_resources_per_node().values())
    return [replace(node, gpus=int(node.gpus)) if node.gpus > 1 else node for node in nodes]


def _claim(config: PoolConfig, size: int) -> Reservation:
    place = {"CPU": config.cpus_per_actor, "GPU": config.gpu_claim, "memory": int(config.memory_claim)}
    bundles = [{name: amount for name, amount in place.items() if amount} for _ in range(size)]
    return Reservation(size, placement_group(bundles, strategy="PACK"))


def _need(config: PoolConfig, size: int) -> str:
    gpus = f" + {config.gpu_claim:g} GPU" if config.gpu_claim else ""
    memory = f" + {config.memory_claim / 1e9:.1f} GB" if config.memory_claim else ""
    return f"{size} x {config.cpus_per_actor:g} CPU{gpus}{memory}"


def _free(config: PoolConfig, free: Sequence[Node]) -> str:
    total = cluster_nodes()
    cpus = f"{sum(node.cpus for node in free):g} of {sum(node.cpus for node in total):g} CPU"
    gpus = f" and {sum(node.gpus for node in free):g} of {sum(node.gpus for node in total):g} GPU"
    gigabytes = [sum(node.memory_bytes for node in nodes) / 1e9 for nodes in (free, total)]
    memory = f" and {gigabytes[0]:.1f} of {gigabytes[1]:.1f} GB"
    return cpus + gpus * bool(config.gpu_claim) + memory * bool(config.memory_claim)
