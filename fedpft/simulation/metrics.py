"""The numbers of a run among the cluster's own: Prometheus scrapes them from the nodes' agents, Grafana draws them.

Ray exports each under `ray_` + its name, counters with `_total` after it, and the label `run`. The names are stable:
`ray_cluster/grafana/fedpft.json` and other people's dashboards read them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.util.metrics import Counter, Gauge

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

GAUGES = {
    "fedpft_round": "Rounds done.",
    "fedpft_round_seconds": "Of the last round, evaluation included.",
    "fedpft_train_loss": "Mean over the clients of the last round.",
    "fedpft_fm_score": "The run's metric on the evaluation data: the plugged-in FM.",
    "fedpft_sub_fm_score": "The run's metric on the evaluation data: the sub-FM.",
    "fedpft_clients_per_second": "Good updates of the last round over the seconds of its training.",
    "fedpft_actor_utilization": "Share of the actors' time in the last round's training that they trained, 0 to 1.",
    "fedpft_alignment_loss": "Of the newest step of an alignment.",
}
COUNTERS = {
    "fedpft_bytes_up": "Sent by clients.",
    "fedpft_bytes_down": "Sent to clients.",
    "fedpft_dropped_clients": "Clients of a round without a good update.",
    "fedpft_client_retries": "Further attempts for clients that failed.",
}

_FROM_RECORD = {
    "fedpft_round": "round",
    "fedpft_round_seconds": "seconds",
    "fedpft_train_loss": "train_loss",
    "fedpft_fm_score": "fm",
    "fedpft_sub_fm_score": "sub_fm",
}
"""Gauge -> key of a round's record."""


class RayMetrics:
    """A `Tracker` that tells the cluster.

    Args:
        run: value of the label `run`.
        num_actors: returns how many there are.

    """

    locations: Mapping[str, str] = {}

    def __init__(self, run: str, num_actors: Callable[[], int]) -> None:
        self._num_actors, self._fit_seconds = num_actors, 0.0
        self._gauges = {name: Gauge(name, meaning, tag_keys=("run",)) for name, meaning in GAUGES.items()}
        self._counters = {name: Counter(name, meaning, tag_keys=("run",)) for name, meaning in COUNTERS.items()}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags({"run": run})

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Set the gauges, move the counters on."""
        for name, key in _FROM_RECORD.items():
            if isinstance(record.get(key), int | float):
                self._gauges[name].set(float(record[key]))
        if record["round"] == 0 or "clients" not in record:  # privacy.strict keeps them back
            return
        self._fit_seconds = record["time/fit_seconds"]
        self._gauges["fedpft_clients_per_second"].set(len(record["clients"]) / self._fit_seconds)
        self._count("fedpft_bytes_up", record["comm/bytes_up"])
        self._count("fedpft_bytes_down", record["comm/bytes_down"])
        self._count("fedpft_dropped_clients", len(record.get("dropped", ())))
        self._count("fedpft_client_retries", record.get("retries", 0))

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Set the utilisation, of the round that was logged before."""
        trained = sum(row["seconds"] for row in rows)
        self._gauges["fedpft_actor_utilization"].set(trained / (self._num_actors() * self._fit_seconds))

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Set the alignment's loss."""
        self._gauges["fedpft_alignment_loss"].set(metrics["align/step_loss"])

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Ignore."""

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Nothing to end: Ray drops the numbers of a process that is gone."""

    def fail(self) -> None:
        """Nothing to end."""

    def _count(self, name: str, amount: float) -> None:
        if amount:  # Ray refuses to count nothing
            self._counters[name].inc(float(amount))
