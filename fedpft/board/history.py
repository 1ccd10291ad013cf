"""What a run's rounds come to, kept small: columns of what was evaluated, sums, and the newest line."""

import math
from array import array
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any

MAX_UNCOUNTED_ROUNDS = 3
"""As in `federated.driver`, whose import takes seconds."""
MAX_POINTS = 400
"""Of a curve: more than a screen has columns for."""
_MAX_CLIENTS = 1000
"""Clients whose last loss is kept."""
_RECENT = 10
"""Rounds from whose mean the time that is left follows."""


class History:
    """Takes the lines of rounds.jsonl, one after the other."""

    def __init__(self) -> None:
        self.rounds = array("l")
        """Rounds that were evaluated; `fm` and `sub_fm` have a value for each, NaN where there is none."""
        self.fm, self.sub_fm = array("d"), array("d")
        self.last: Mapping[str, Any] = {}
        """The newest line."""
        self.scored: Mapping[str, Any] = {}
        """The newest one with an evaluation: `metric`, `metric_goal`."""
        self.num_dropped = 0
        """Updates that were missed, over all rounds."""
        self.num_bytes, self.flops = 0.0, 0.0
        self.epsilon: float | None = None
        self.losses: dict[int, float] = {}
        """Client -> loss in the last round that it finished."""
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._uncounted = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a line; one without a number of a round is none."""
        index = record.get("round")
        if not isinstance(index, int):
            return
        self.last = record
        self.num_dropped += len(_list(record, "dropped"))
        self.num_bytes += _number(record, "comm/bytes_up") + _number(record, "comm/bytes_down")
        self.flops += _number(record, "clients/flops")
        self._recent.append(_number(record, "seconds"))
        self._uncounted = 0 if record.get("counted", True) else self._uncounted + 1
        self.epsilon = epsilon_of(record, self.epsilon)
        if isinstance(record.get("fm"), int | float):
            self.scored = {key: record[key] for key in ("metric", "metric_goal") if key in record}
            self.rounds.append(index)
            self.fm.append(record["fm"])
            self.sub_fm.append(_number(record, "sub_fm", math.nan))
        if len(self.losses) <= _MAX_CLIENTS:
            pairs = zip(_list(record, "clients"), _list(record, "client_losses"), strict=False)
            self.losses.update(pairs)

    @property
    def round(self) -> int:
        """The last one done."""
        return self.last.get("round", 0)

    @property
    def seconds_per_round(self) -> float | None:
        """Mean over the newest rounds."""
        return fmean(self._recent) if self._recent else None

    def gave_up(self, num_rounds: int | None) -> bool:
        """Whether so many rounds in a row did not count that the run stopped; `num_rounds`: all that it would have."""
        return self._uncounted > 0 and self._uncounted >= min(MAX_UNCOUNTED_ROUNDS, num_rounds or MAX_UNCOUNTED_ROUNDS)

    def thinned(self, num_rounds: int) -> list[dict[str, Any]]:
        """Return the evaluations as lines of rounds.jsonl: every one or every 2nd, 4th ... of them, and the last.

        Runs of the same length, done or not, keep the same rounds, so that means over seeds are over equal rounds.
        """
        gap = max(1, min((b - a for a, b in pairwise(self.rounds[:3])), default=1))
        step = 1
        while num_rounds / (gap * step) > MAX_POINTS:
            step *= 2
        lines = []
        for index, fm, sub_fm in zip(self.rounds, self.fm, self.sub_fm, strict=True):
            if step == 1 or index % (gap * step) == 0 or index == self.rounds[-1]:
                lines.append({"round": index, "fm": fm, **({} if math.isnan(sub_fm) else {"sub_fm": sub_fm})})
        return lines


def epsilon_of(record: Mapping[str, Any], default: float | None = None) -> float | None:
    """Return the privacy that was spent up to a line, where the run has an accountant."""
    for key in ("privacy/epsilon", "epsilon"):
        if isinstance(record.get(key), int | float):
            return float(record[key])
    return default


def _number(record: Mapping[str, Any], key: str, default: float = 0.0) -> float:
    value = record.get(key)
    return value if isinstance(value, int | float) else default


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []
