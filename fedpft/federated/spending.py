"""What clients and server spend: in a round, and in a whole run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedpft.federated.messages import ClientReport

SUMS = {
    "client_flops_total": "clients/flops",
    "bytes_up_total": "comm/bytes_up",
    "bytes_down_total": "comm/bytes_down",
    "align_seconds": "time/align_seconds",
}
"""Key of `result.json` -> what it adds up of the rounds' records."""

LARGEST = {"client_memory_bytes": "clients/memory_bytes_max", "client_gpu_bytes": "clients/gpu_bytes_max"}
"""Key of `result.json` -> what it is the largest of."""


def clients_spent(reports: Sequence[ClientReport]) -> dict[str, float]:
    """Return `clients/*` of the round's record, over the clients with good updates; only what they measured."""
    spent: dict[str, float] = {}
    if flops := _of_each(reports, "flops"):
        spent |= {
            "clients/flops": sum(flops),
            "clients/flops_mean": sum(flops) / len(flops),
            "clients/flops_max": max(flops),
        }
    for name in ("memory_bytes", "gpu_bytes"):
        if sizes := _of_each(reports, name):
            spent[f"clients/{name}_max"] = max(sizes)
    if company := _of_each(reports, "together"):
        spent["clients/together_mean"] = fmean(company)
    return spent


def add_round(spent: Mapping[str, float], record: Mapping[str, Any]) -> dict[str, float]:
    """Return what a run has spent with one more round, given the round's record."""
    sums = {key: spent.get(key, 0) + record.get(source, 0) for key, source in SUMS.items()}
    largest = {key: max(spent.get(key, 0), record.get(source, 0)) for key, source in LARGEST.items()}
    fits = spent.get("client_fits", 0) + len(record["clients"])
    return {"client_fits": fits} | {key: value for key, value in (sums | largest).items() if value}


def run_spent(spent: Mapping[str, float]) -> dict[str, float]:
    """Return a run's sums and maxima for `result.json`, with `client_flops_per_round`, the mean of all fits."""
    flops, fits = spent.get("client_flops_total", 0), spent.get("client_fits", 0)
    return dict(spent) | ({"client_flops_per_round": round(flops / fits)} if flops and fits else {})


def actor_utilisation(reports: Sequence[ClientReport], num_actors: int, seconds: float) -> dict[str, Any]:
    """Return `time/actor_utilisation*` of the round's record: the actors' part of `seconds` in which clients trained.

    Of each actor that has a good update, and the mean and the least of all actors. Only good updates count: what an
    actor did in vain, or was idle or unpacking messages, is not training. An actor that was replaced during the round
    counts as another one.
    """
    busy: dict[str, float] = defaultdict(float)
    for report in reports:
        busy[report.actor] += report.metrics["seconds"]
    least = min(busy.values(), default=0.0) if len(busy) >= num_actors else 0.0
    return {
        "time/actor_utilisation": {actor: trained / seconds for actor, trained in sorted(busy.items())},
        "time/actor_utilisation_mean": sum(busy.values()) / (num_actors * seconds),
        "time/actor_utilisation_min": least / seconds,
    }


def _of_each(reports: Sequence[ClientReport], name: str) -> list[float]:
    return [report.metrics[name] for report in reports if name in report.metrics]
