"""The places of a cluster that a trial of a sweep claims: its driver's and its actors'."""

from collections.abc import Sequence

from fedpft.config import Config, ConfigError
from fedpft.config.gpus import driver_claim
from fedpft.config.sweep import SweepConfig
from fedpft.simulation.cluster import Node


def bundles(sweep: SweepConfig, config: Config, nodes: Sequence[Node]) -> list[dict[str, float]]:
    """Return the places that a trial needs at once: its driver's, then one for each of its actors.

    `pool.actors = auto` takes the trial's share of the cluster: at least one actor, at most one for each client.
    """
    total = {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}
    gpus = max(sweep.driver_gpus, config.server.gpu_claim)  # what somebody asked for
    driver = {"CPU": sweep.driver_cpus, "GPU": gpus or driver_claim(config, total["GPU"], sweep.max_concurrent)}
    pool, actors = config.pool, 0
    place = {"CPU": pool.cpus_per_actor, "GPU": pool.gpu_claim}
    if pool.kind == "ray":
        at_once = sweep.max_concurrent or 1
        shares = [int((total[kind] / at_once - driver[kind]) / amount) for kind, amount in place.items() if amount]
        cohort = config.federated.cohort_size
        actors = pool.actors if isinstance(pool.actors, int) else cohort
        if pool.actors == "auto":
            actors = max(1, min(cohort, *shares))
    return [{kind: amount for kind, amount in one.items() if amount} for one in [driver, *[place] * actors]]


def check_room(sweep: SweepConfig, config: Config, nodes: Sequence[Node]) -> None:
    """Look whether the empty cluster holds a trial.

    Raises:
        ConfigError: it does not; such a trial would wait for ever.

    """
    need = bundles(sweep, config, nodes)
    for kind, have in (("CPU", sum(node.cpus for node in nodes)), ("GPU", sum(node.gpus for node in nodes))):
        asked = sum(place.get(kind, 0) for place in need)
        if asked > have:
            found = f"{asked:g} {kind} for a driver and {len(need) - 1} actor(s)"
            raise ConfigError(f"pool.actors / driver_cpus: a trial asks {found}, the cluster has {have:g} {kind}")
