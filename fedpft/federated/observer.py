"""What a run tells whoever watches it: the live screen, or nobody."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fedpft.federated.messages import ClientFailure, ClientUpdate
from fedpft.trainer import Progress, SilentProgress


class RunObserver(Progress, Protocol):
    """Receives the events of one run, in order, from the driver's thread. Watching never changes the run."""

    def note(self, line: str) -> None:
        """Something that the user wants to know at once."""

    def run_started(self, record: Mapping[str, Any]) -> None:
        """Round 1 is next; `record` is what was evaluated before it, as the line of a round 0."""

    def round_started(self, round_index: int, num_rounds: int, client_ids: Sequence[int]) -> None:
        """Round `round_index` (1-based) of `num_rounds` was planned for these clients."""

    def client_finished(self, update: ClientUpdate) -> None:
        """A client's update arrived (in order of arrival)."""

    def client_failed(self, failure: ClientFailure) -> None:
        """A client was dropped from the round (in order of arrival)."""

    def round_finished(self, record: Mapping[str, Any]) -> None:
        """The round is over; `record` is its line of rounds.jsonl."""


class SilentObserver(SilentProgress):
    """Shows nothing."""

    def note(self, line: str) -> None:
        """Ignore."""

    def run_started(self, record: Mapping[str, Any]) -> None:
        """Ignore."""

    def round_started(self, round_index: int, num_rounds: int, client_ids: Sequence[int]) -> None:
        """Ignore."""

    def client_finished(self, update: ClientUpdate) -> None:
        """Ignore."""

    def client_failed(self, failure: ClientFailure) -> None:
        """Ignore."""

    def round_finished(self, record: Mapping[str, Any]) -> None:
        """Ignore."""


class Forwarding:
    """Passes everything on; for who wants to hear some of it.

    Args:
        observer: hears everything.

    """

    def __init__(self, observer: RunObserver) -> None:
        self._observer = observer

    def stage(self, title: str) -> None:
        """Pass on."""
        self._observer.stage(title)

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Pass on."""
        self._observer.progress(done, total, metrics)

    def note(self, line: str) -> None:
        """Pass on."""
        self._observer.note(line)

    def run_started(self, record: Mapping[str, Any]) -> None:
        """Pass on."""
        self._observer.run_started(record)

    def round_started(self, round_index: int, num_rounds: int, client_ids: Sequence[int]) -> None:
        """Pass on."""
        self._observer.round_started(round_index, num_rounds, client_ids)

    def client_finished(self, update: ClientUpdate) -> None:
        """Pass on."""
        self._observer.client_finished(update)

    def client_failed(self, failure: ClientFailure) -> None:
        """Pass on."""
        self._observer.client_failed(failure)

    def round_finished(self, record: Mapping[str, Any]) -> None:
        """Pass on."""
        self._observer.round_finished(record)
