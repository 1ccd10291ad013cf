"""A tracker in a thread of its own: however slow its disk or its network is, the run does not wait for it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpft.tracking.trackers import Tracker

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

MAX_WAITING = 10_000
"""Calls that may wait; beyond half of them the points of an alignment's curve are left out."""
FINISH_SECONDS = 60.0
"""For what still waits when the run has its result."""
FAIL_SECONDS = 5.0
"""The same when it failed or was stopped."""


class TooSlowError(RuntimeError):
    """A tracker is so far behind that it is given up; the message says how far."""


class Queued:
    """A `Tracker` that hands every call to another one in a thread, in order.

    What the other one raises is raised by the next call here, and nothing more is handed to it.

    Args:
        tracker: the other; it is used by the thread alone.
        max_waiting: calls that may wait.
        finish_seconds: how long `finish` waits.
        fail_seconds: how long `fail` waits.

    Raises:
        TooSlowError: by any call: more wait than may, or the time to finish is over.

    """

    def __init__(
        self,
        tracker: Tracker,
        max_waiting: int = MAX_WAITING,
        finish_seconds: float = FINISH_SECONDS,
        fail_seconds: float = FAIL_SECONDS,
    ) -> None:
        self._tracker, self._max_waiting = tracker, max_waiting
        self._finish_seconds, self._fail_seconds = finish_seconds, fail_seconds
        self._waiting: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._is_busy, self._error = False, None
        # a daemon: a process that ends does not wait for it
        threading.Thread(target=self._work, daemon=True, name=type(tracker).__name__).start()

    _error: Exception | None

    @property
    def locations(self) -> Mapping[str, str]:
        """The other's."""
        return self._tracker.locations

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Hand on a copy."""
        copied = dict(record)
        self._put(lambda: self._tracker.log_round(copied))

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hand on a copy."""
        copied = list(rows)
        self._put(lambda: self._tracker.log_clients(round_index, copied))

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Hand on a copy, unless many calls wait: a curve with fewer points is still the curve."""
        copied = dict(metrics)
        if len(self._waiting) <= self._max_waiting // 2:
            self._put(lambda: self._tracker.log_stage(copied))

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Hand on."""
        self._put(lambda: self._tracker.log_figure(name, figure))

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Hand on, and wait until all is done."""
        self._put(lambda: self._tracker.finish(result, files))
        left = self._drain(self._finish_seconds)
        self._raise_what_came()
        if left:
            raise TooSlowError(f"{left} records were not taken in {self._finish_seconds:g} s after the end")

    def fail(self) -> None:
        """Hand on, whatever the other raised before, and wait a little."""
        with self._changed:
            self._error = None
            self._waiting.append(self._tracker.fail)
            self._changed.notify_all()
        self._drain(self._fail_seconds)

    def _put(self, call: Callable[[], None]) -> None:
        self._raise_what_came()
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                self._waiting.clear()
                raise TooSlowError(f"{self._max_waiting} records wait for it")
            self._waiting.append(call)
            self._changed.notify_all()

    def _raise_what_came(self) -> None:
        if self._error is not None:
            raise self._error

    def _drain(self, seconds: float) -> int:
        """Wait until nothing is left to do, but no longer than this; return how many calls are left."""
        give_up = time.monotonic() + seconds
        with self._changed:
            while (self._waiting or self._is_busy) and (patience := give_up - time.monotonic()) > 0:
                self._changed.wait(patience)
            return len(self._waiting) + self._is_busy

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                call = self._waiting.popleft()
                self._is_busy = True
            error = None
            try:
                call()
            except Exception as raised:  # told by the next call, in the run's own thread
                error = raised
            with self._changed:
                self._is_busy = False
                if error is not None:
                    self._error = error
                    self._waiting.clear()
                self._changed.notify_all()
