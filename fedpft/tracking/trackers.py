"""What takes a run's numbers: the protocol, `rounds.jsonl`, and how others are kept from ending a run."""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure


class Tracker(Protocol):
    """Receives the numbers of one run, in order, from the driver's process."""

    @property
    def locations(self) -> Mapping[str, str]:
        """What is recorded -> the file, folder or URL where it is."""

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Take the line of one round: `round, clients, train_loss, lr, seconds`, in evaluation rounds `fm, sub_fm`.

        Round 0 has only what was evaluated before round 1.
        """

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take one row for each client of a round, with the keys `tracking.names.CLIENT_COLUMNS`."""

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Take a point of an alignment's curve: `align/step`, which counts on over a whole run, and other `align/*`."""

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Take the newest state of a plotly figure."""

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """End the run with its `result.json` and the files written, by name (`adapter`, `result`)."""

    def fail(self) -> None:
        """End a run that did not get to its result; what was logged stays."""


class JsonlTracker:
    """Writes `rounds.jsonl`, complete to the last round at every moment; a resumed run goes on in the same file."""

    def __init__(self, output_dir: Path) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        self._path = output_dir / "rounds.jsonl"
        self._file = self._path.open("a", encoding="utf-8")

    @property
    def locations(self) -> Mapping[str, str]:
        """The file."""
        return {"rounds": str(self._path)}

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Append one line; there is none for round 0."""
        if record["round"] == 0:
            return
        line = json.dumps(dict(record), default=lambda value: value.tolist())  # NumPy's numbers and arrays
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # before the round's checkpoint, which counts on it

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ignore: a line a round, no more."""

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Ignore."""

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Ignore."""

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Close the file."""
        self._file.close()

    def fail(self) -> None:
        """Close the file; what no longer fits on the disk is lost, and no reason to hide why the run failed."""
        with suppress(OSError):
            self._file.close()


class Tolerated:
    """A tracker without which a run goes on: its first failure is a warning, and then it is asked for nothing more.

    Args:
        tracker: the other.
        name: what it is called.

    """

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name, self._locations = tracker, name, dict(tracker.locations)
        self._works = True

    @property
    def locations(self) -> Mapping[str, str]:
        """Where it was when it began: what was recorded until it failed stays."""
        return self._locations

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Pass on."""
        self._try(lambda: self._tracker.log_round(record))

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Pass on."""
        self._try(lambda: self._tracker.log_clients(round_index, rows))

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Pass on."""
        self._try(lambda: self._tracker.log_stage(metrics))

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Pass on."""
        self._try(lambda: self._tracker.log_figure(name, figure))

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Pass on."""
        self._try(lambda: self._tracker.finish(result, files))

    def fail(self) -> None:
        """Pass on; why the run failed is told elsewhere."""
        if self._works:
            with suppress(Exception):
                self._tracker.fail()

    def _try(self, call: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            call()
        except Exception as error:  # of a service, a library, a disk: the run does not depend on it
            self._works = False
            warn_of(self._name, error)
            with suppress(Exception):
                self._tracker.fail()


def warn_of(name: str, error: Exception) -> None:
    """Warn that a tracker failed, in one line."""
    lines = str(error).strip().splitlines()
    reason = ": ".join([type(error).__name__, *lines[:1]])
    warnings.warn(f"{name} failed, the run goes on without it: {reason}", stacklevel=3)


class TrackerGroup:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    @property
    def locations(self) -> Mapping[str, str]:
        """All of them."""
        return {name: place for tracker in self._trackers for name, place in tracker.locations.items()}

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.log_round(record)

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.log_clients(round_index, rows)

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.log_stage(metrics)

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.log_figure(name, figure)

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.finish(result, files)

    def fail(self) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.fail()
