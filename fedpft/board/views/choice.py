"""What a page shows, as its address says: every choice is in the query, so that it can be kept and passed on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self
from urllib.parse import urlencode

from fedpft.board.run import BoardRun
from fedpft.board.state import STATES

Sort = Literal["state", "newest", "name", "metric", "round"]
SORTS: dict[str, str] = {
    "state": "running first",
    "newest": "newest first",
    "name": "name",
    "metric": "metric, best first",
    "round": "round",
}
PAGE_LENGTH = 200
_MAX_LENGTH = 500
"""Of a word in an address."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The query of an address; what is not in it, or cannot be, has its default."""

    q: str = ""
    """Words that must all be in a run's name, method, task or state; `KEY=VALUE`: its setting."""
    state: tuple[str, ...] = ()
    """Of `STATES`; empty: all."""
    run: tuple[str, ...] = ()
    """Keys of runs; empty: all."""
    sort: str = "state"
    page: int = 1
    baseline: str = ""
    """A group's label."""
    set: str = ""
    """Key of the runs that are compared, of several sets."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """Return the choice of a query's names and values."""
        found = [(name, value[:_MAX_LENGTH]) for name, value in pairs]
        last = dict(found)
        pages = last.get("page", "1")
        return cls(
            q=last.get("q", "").strip(),
            state=tuple(state for state in STATES if ("state", state) in found),
            run=tuple(dict.fromkeys(value for name, value in found if name == "run")),
            sort=last["sort"] if last.get("sort") in SORTS else "state",
            page=max(1, int(pages)) if pages.isdecimal() and len(pages) < 6 else 1,
            baseline=last.get("baseline", ""),
            set=last.get("set", ""),
        )

    def query(self, **changes: Any) -> str:
        """Return `?...` of this choice with changes; nothing if all is as without."""
        changed = replace(self, **changes)
        pairs = [
            (field.name, value)
            for field in fields(changed)
            if (value := getattr(changed, field.name)) not in ("", (), field.default)
        ]
        return f"?{urlencode(pairs, doseq=True)}" if pairs else ""

    def allows(self, run: BoardRun, *, any_state: bool = False) -> bool:
        """Return whether a run is shown."""
        if (self.run and run.key not in self.run) or (self.state and run.state not in self.state and not any_state):
            return False
        return all(_has(run, word.lower()) for word in self.q.split())

    def sorted(self, runs: Sequence[BoardRun]) -> list[BoardRun]:
        """Return the runs in order."""
        newest = sorted(runs, key=lambda run: (-run.written, run.title))
        if self.sort == "name":
            return sorted(runs, key=lambda run: run.title)
        if self.sort == "state":
            return sorted(newest, key=lambda run: STATES.index(run.state))
        if self.sort == "round":
            return sorted(newest, key=lambda run: -run.round)
        return sorted(newest, key=_rank) if self.sort == "metric" else newest


def _rank(run: BoardRun) -> tuple[bool, str, float]:
    value = run.value
    if value is None:
        return True, "", 0.0
    goal = {**run.last, **run.history.scored, **run.result}.get("metric_goal")
    return False, run.metric or "", value if goal == "min" else -value


def _has(run: BoardRun, word: str) -> bool:
    key, equals, wanted = word.partition("=")
    if equals:
        values = (value for name, value in run.settings.items() if f".{name}".lower().endswith(f".{key}"))
        return any(value.strip('"').lower() == wanted for value in values)
    said = (run.title, run.state, run.method, run.setting("task.name"), run.setting("fm.path"))
    return any(word in str(text).lower() for text in said if text)
