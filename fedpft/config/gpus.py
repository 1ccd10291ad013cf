"""Who owns which GPU of a run: one account for the server's side and for the clients' actors.

    the server's side   claims `server.num_gpus` from Ray, before any actor does; `auto` is `server_claim`
    actors              get what is left: whole other GPUs, or the rest of the one that they share with the server
    a sweep's trial     claims both at once, its driver's part first: `driver_claim`

A part of a GPU is a part of its memory, too: where actors share the server's, a try of how many fit leaves it its
part, since its peaks (alignment, evaluation) come later.
"""

from fedpft.config.run import Config

_SHARE_BESIDE_PACKED_ACTORS = 0.5


def server_claim(config: Config, num_gpus: float) -> float:
    """Return how many GPUs the server's side claims, `server.num_gpus` or what is meant by `auto`.

    That is 0 where nobody else of the run claims one: the server then uses what it sees. Else whole GPUs of its own,
    where as many are left as an actor needs; else a part of the only one, as much as an actor's, if that is left.

    Args:
        config: the run's.
        num_gpus: that are there for the server and its actors.

    """
    server, pool = config.server, config.pool
    if server.num_gpus != "auto":
        return server.gpu_claim
    actor = pool.gpu_claim if pool.kind == "ray" else 0.0
    if server.accelerator == "cpu" or not actor:
        return 0.0
    if num_gpus - server.devices >= actor:
        return float(server.devices)
    if num_gpus < 1 or server.devices > 1:
        return 0.0
    return _SHARE_BESIDE_PACKED_ACTORS if pool.gpus_per_actor == "auto" else _cut(min(actor, 1 - actor))


def driver_claim(config: Config, num_gpus: float, max_concurrent: int | None) -> float:
    """Return how many GPUs a sweep's trial claims for its driver.

    Clients that train in the driver's process use its GPU, too: their trial has one, or its part of those there are.

    Args:
        config: the trial's run.
        num_gpus: of the cluster.
        max_concurrent: trials at a time; None: nobody knows.

    """
    server, pool = config.server, config.pool
    in_driver = pool.kind == "sequential" and {server.accelerator, pool.accelerator} != {"cpu"}
    if not in_driver or server.num_gpus != "auto":
        return server_claim(config, num_gpus)
    return _cut(min(1.0, num_gpus / (max_concurrent or 1)))


def _cut(share: float) -> float:
    """Ray reckons in ten-thousandths."""
    return int(1e4 * share + 1e-6) / 1e4
