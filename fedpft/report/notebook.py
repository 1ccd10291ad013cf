"""What a user sees of a run in a notebook: one cell's output that changes in place, without widgets to install."""

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Self

from fedpft.report.scores import round_scores
from fedpft.report.wording import duration, round_line

if TYPE_CHECKING:
    from fedpft.federated.messages import ClientFailure, ClientUpdate

_MIN_UPDATE_SECONDS = 0.25
_MAX_LINES = 12
"""The newest lines of rounds and notes; all of them stand in rounds.jsonl."""


class NotebookScreen:
    """A `RunObserver` that shows bars for the stage, the rounds and the round's clients, and the last rounds' lines."""

    def __init__(self) -> None:
        from IPython.display import HTML, display  # is there wherever a notebook is

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)
        self._bars: dict[str, tuple[int, int | None, str]] = {}
        self._lines: list[str] = []
        self._start = self._shown = time.monotonic()
        self._num_rounds = 0
        self._reasons: set[str] = set()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the lines, without bars."""
        self._bars.clear()
        self._lines.append(f"{'stopped' if kind else 'done'}  {duration(time.monotonic() - self._start)}")
        self._show(now=True)

    def stage(self, title: str) -> None:
        """Show the new stage in place of the previous one."""
        self._bars["stage"] = (0, None, title)
        self._show(now=True)

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Move the stage's bar."""
        title = self._bars.get("stage", (0, None, ""))[2].partition("  ")[0]
        loss = f"  loss {metrics['loss']:.3f}" if "loss" in metrics else ""
        self._bars["stage"] = (done, total, title + loss)
        self._show()

    def note(self, line: str) -> None:
        """Keep the line."""
        self._say(line)

    def run_started(self, record: Mapping[str, Any]) -> None:
        """Show what was evaluated before the first round."""
        self._say("untuned  " + "  ".join(round_scores(record)))

    def round_started(self, round_index: int, num_rounds: int, client_ids: Sequence[int]) -> None:
        """Show the bar of all rounds, and one of this round's clients."""
        self._num_rounds = num_rounds
        self._bars.pop("stage", None)
        self._bars["rounds"] = (round_index - 1, num_rounds, "rounds")
        self._bars["clients"] = (0, len(client_ids), f"round {round_index}")
        self._show()

    def client_finished(self, update: "ClientUpdate") -> None:
        """Move the clients' bar."""
        self._client_ended(f"client {update.client_id}  loss {update.metrics['loss']:.3f}")

    def client_failed(self, failure: "ClientFailure") -> None:
        """Say why, with the traceback the first time that there is one for this reason."""
        self._client_ended(f"client {failure.client_id}  dropped")
        self._say(f"dropped: {failure}")
        if failure.traceback and failure.reason not in self._reasons:
            self._reasons.add(failure.reason)
            self._say(failure.traceback.rstrip())

    def round_finished(self, record: Mapping[str, Any]) -> None:
        """Move the rounds' bar and keep the round's line."""
        self._bars.pop("clients", None)
        self._bars["rounds"] = (record["round"], self._num_rounds, "rounds")
        self._say(round_line(record, self._num_rounds, round_scores(record)))

    def _client_ended(self, note: str) -> None:
        done, total, title = self._bars.get("clients", (0, None, ""))
        self._bars["clients"] = (done + 1, total, f"{title.partition('  ')[0]}  {note}")
        self._show()

    def _say(self, line: str) -> None:
        self._lines.append(line)
        self._show()

    def _show(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._shown < _MIN_UPDATE_SECONDS:
            return
        self._shown = time.monotonic()
        bars = "".join(_bar(*bar) for bar in self._bars.values())
        self._handle.update(self._html(f"<pre>{escape(chr(10).join(self._lines[-_MAX_LINES:]))}</pre>{bars}"))


def _bar(done: int, total: int | None, title: str) -> str:
    value = "" if total is None else f" value='{done}' max='{total}'"
    count = "" if total is None else f"{done}/{total} "
    return f"<div><progress{value}></progress> {count}{escape(title)}</div>"
