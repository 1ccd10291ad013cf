"""What a run tells of its clients one by one, which only a simulation knows: marked in a private run, or kept back.

A server of real clients with differential privacy (or secure aggregation) would see none of it. So in a run with
`privacy.kind` or `privacy.secure_aggregation` each record lists the names of such numbers as `simulation_only`, and
with `privacy.strict` they are in no file and on no screen. The round loop itself is the same: this wall stands between
it and whoever watches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpft.config import PrivacyConfig
from fedpft.federated.messages import ClientFailure, ClientUpdate
from fedpft.federated.observer import Forwarding, RunObserver
from fedpft.tracking.trackers import Tracker

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

SIMULATION_ONLY = (
    *("clients", "clients/*", "client_losses", "train_loss", "comm/bytes_up", "comm/bytes_down"),
    *("dropped", "failures", "retries", "unavailable", "stragglers", "candidates", "adversaries", "counted"),
    *("not_opened", "comm/bytes_keys", "comm/bytes_shares", "comm/bytes_masked", "comm/bytes_unmask"),
    *("privacy/num_clipped", "lora/*", "time/actor_utilisation*", "time/fit_seconds"),
    *(
        "client_accuracy*",
        "client_accuracies",
        "client_expected_accuracy",
        "client_fits",
        "client_flops_total",
        "client_flops_per_round",
    ),
    *("client_memory_bytes", "client_gpu_bytes", "bytes_up_total", "bytes_down_total", "never_trained"),
)
"""Keys (patterns) of a round's record and of `result.json` that tell of single clients, or of how many came."""

KEPT_BACK = "kept back by privacy.strict"
"""In place of a failure's reason."""


def told(record: Mapping[str, Any], privacy: PrivacyConfig) -> dict[str, Any]:
    """Return a record as files and screens may have it."""
    alone = [key for key in record if any(fnmatch(key, pattern) for pattern in SIMULATION_ONLY)]
    if privacy.strict:
        return {key: value for key, value in record.items() if key not in alone}
    is_private = privacy.is_on or privacy.secure_aggregation
    return {**record, **({"simulation_only": sorted(alone)} if is_private and alone else {})}


def without_reason(failure: ClientFailure) -> ClientFailure:
    """Return a failure that says nothing of what was computed; a message may quote an example."""
    return replace(failure, reason=KEPT_BACK, traceback="")


def behind_wall(tracker: Tracker, observer: RunObserver, privacy: PrivacyConfig) -> tuple[Tracker, RunObserver]:
    """Return who takes a run's numbers and who watches it, as what they may hear allows."""
    if not (privacy.is_on or privacy.strict or privacy.secure_aggregation):
        return tracker, observer
    return _Tracker(tracker, privacy), _Observer(observer, privacy)


class _Tracker:
    def __init__(self, tracker: Tracker, privacy: PrivacyConfig) -> None:
        self._tracker, self._privacy = tracker, privacy

    @property
    def locations(self) -> Mapping[str, str]:
        return self._tracker.locations

    def log_round(self, record: Mapping[str, Any]) -> None:
        self._tracker.log_round(told(record, self._privacy))

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self._privacy.strict:
            self._tracker.log_clients(round_index, rows)

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        self._tracker.log_stage(metrics)

    def log_figure(self, name: str, figure: "Figure") -> None:
        self._tracker.log_figure(name, figure)

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self._tracker.finish(result, files)

    def fail(self) -> None:
        self._tracker.fail()


class _Observer(Forwarding):
    def __init__(self, observer: RunObserver, privacy: PrivacyConfig) -> None:
        super().__init__(observer)
        self._privacy = privacy

    def round_started(self, round_index: int, num_rounds: int, client_ids: Sequence[int]) -> None:
        super().round_started(round_index, num_rounds, () if self._privacy.strict else client_ids)

    def client_finished(self, update: ClientUpdate) -> None:
        if not self._privacy.strict:
            super().client_finished(update)

    def client_failed(self, failure: ClientFailure) -> None:
        if not self._privacy.strict:
            super().client_failed(failure)
