"""A run as the board knows it: nothing of it is read before somebody wants to know, and then only what is new."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpft.board.files import CachedFile, Stamp, as_settings, stamp
from fedpft.board.folder import BoardFolder
from fedpft.board.history import History
from fedpft.board.lines import Follower, as_object, last_line
from fedpft.board.state import State, state_of
from fedpft.config.flat import flat_settings
from fedpft.metrics.table import METRICS
from fedpft.storage.output import ENDED_FILE, ROUNDS_FILE


class BoardRun(BoardFolder):
    """One run's folder."""

    def __init__(self, folder: Path, title: str) -> None:
        super().__init__(folder, title)
        self._alive: bool | None = None
        self.version = 0
        """Of the board when this run last changed."""
        self.error: str | None = None
        """Why it failed, as far as its sweep says."""
        self.history = History()
        self._config = CachedFile(folder / "config.yaml", as_settings)
        self._result = CachedFile(folder / "result.json", as_object)
        self._ended = CachedFile(folder / ENDED_FILE, as_object)
        self._rounds: Stamp | None = None
        self._follower = Follower(folder / ROUNDS_FILE)
        self._followed: Stamp | None = None
        self._tail: tuple[Stamp | None, Mapping[str, Any]] = (None, {})
        self._flat: tuple[Stamp | None, dict[str, str]] = (None, {})

    def look(self, now: float, error: str | None = None) -> bool:
        """Look at the files' times, open none that is unchanged; return whether anything that people see is new.

        Args:
            now: by the board's clock, seconds.
            error: what the run's sweep says of it.

        """
        before = (self._alive, self._rounds, self.error, self.doing)
        changed = [self._config.look(), self._result.look(), self._ended.look()]
        self._rounds, self.error = stamp(self.folder / ROUNDS_FILE), error
        self.holder.look(now)
        self._alive = self.holder.alive(now)
        return any(changed) or before != (self._alive, self._rounds, self.error, self.doing)

    def follow(self) -> bool:
        """Read on in the rounds, a piece at a time; return whether there is more to read."""
        if self.is_followed:
            return False
        at = self._rounds
        records, begins = self._follower.look()
        if begins:
            self.history = History()
        for record in records:
            self.history.add(record)
        if self._follower.is_at_end:
            self._followed = at
        return not self.is_followed

    @property
    def is_followed(self) -> bool:
        """Whether all rounds that were there at the last look are in the history."""
        return self._followed == self._rounds

    @property
    def reason(self) -> str | None:
        """Why it ended without a result, if it or its sweep says so."""
        ended = self._ended.content if self._ended.stamp else {}
        return str(ended["reason"]) if ended.get("reason") else self.error

    @property
    def state(self) -> State:
        """What it is doing."""
        gave_up = self.is_followed and self.history.gave_up(self.num_rounds)
        ended = self._ended.content.get("kind") if self._ended.stamp else None
        has_failed = self.error is not None or gave_up or ended == "failed"
        return state_of(has_result=self._result.stamp is not None, alive=self._alive, has_failed=has_failed)

    @property
    def doing(self) -> str:
        """What its server works on, in its own words, while it runs; empty: its clients do, or nobody knows."""
        found = self.holder.content.get("doing") if self.state == "running" else None
        return found if isinstance(found, str) else ""

    @property
    def is_there(self) -> bool:
        """Whether it still has a file of a run."""
        return bool(self._rounds or self._result.stamp or self.holder.content)

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest line of rounds.jsonl, read from its end while the rest is not."""
        if self.is_followed:
            return self.history.last
        if self._tail[0] != self._rounds:
            self._tail = (self._rounds, last_line(self.folder / ROUNDS_FILE) or {})
        return self._tail[1]

    @property
    def settings(self) -> dict[str, str]:
        """Dotted key -> JSON of all settings; nothing before there is a config."""
        if self._flat[0] != self._config.stamp:
            self._flat = (self._config.stamp, flat_settings(self._config.content))
        return self._flat[1]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings as they are nested."""
        return self._config.content

    @property
    def is_read(self) -> bool:
        """Whether settings and result cost nothing."""
        return self._config.is_read and self._result.is_read and self._ended.is_read

    @property
    def result(self) -> Mapping[str, Any]:
        """Of a finished run; nothing of another one."""
        return self._result.content if self._result.stamp else {}

    @property
    def method(self) -> str:
        """Its name."""
        return str(self.result.get("method") or self.setting("method.name") or "")

    @property
    def seed(self) -> Any:
        """A whole number, if the run is one of ours."""
        return self.result.get("seed", self.setting("seed"))

    @property
    def num_rounds(self) -> int | None:
        """All that it will have."""
        stopped = self.result.get("stopped")
        planned = stopped.get("planned_rounds") if isinstance(stopped, dict) else None
        found = planned or self.result.get("rounds") or self.setting("federated.rounds")
        return found if isinstance(found, int) else None

    @property
    def round(self) -> int:
        """The last one done."""
        done = self.result.get("rounds") or self.last.get("round")
        return done if isinstance(done, int) else 0

    @property
    def metric(self) -> str | None:
        """Name of the primary one, if it is known here and known to us."""
        found = next(
            (each["metric"] for each in (self.result, self.last, self.history.scored) if "metric" in each), None
        )
        return found if isinstance(found, str) and found.rpartition("/")[2] in METRICS else None

    @property
    def value(self) -> float | None:
        """The plugged-in FM's primary metric in the last evaluation."""
        found = self.result.get("fm", self.last.get("fm"))
        if found is None and self.history.fm:
            found = self.history.fm[-1]
        return found if isinstance(found, int | float) and math.isfinite(found) else None

    @property
    def written(self) -> float:
        """When a file of its numbers last changed, seconds."""
        stamps = (self._rounds, self._result.stamp, self._config.stamp)
        return max((each.time for each in stamps if each), default=0) / 1e9

    @property
    def end(self) -> float | None:
        """When it will have done its rounds if they go on as the newest ones; None: not running, or nobody knows."""
        if self.state != "running" or not self._rounds or not self.num_rounds:
            return None
        seconds = self.history.seconds_per_round if self.is_followed else self.last.get("seconds")
        if not isinstance(seconds, int | float):
            return None
        return self._rounds.time / 1e9 + seconds * max(0, self.num_rounds - self.round)

    def setting(self, key: str) -> Any:
        """Return a setting by its dotted key; None: there is none."""
        text = self.settings.get(key)
        return None if text is None else json.loads(text)
