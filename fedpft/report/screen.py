"""What a user sees of a run: live bars on a terminal, plain lines elsewhere, and a table after it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedpft.federated.dropped import never_trained_line
from fedpft.report.cache import SHOWN_DIGITS
from fedpft.report.clients import client_note, client_rows
from fedpft.report.compute import cost_rows
from fedpft.report.fidelity import cosine_line, fidelity_rows
from fedpft.report.privacy import privacy_rows
from fedpft.report.scores import attack_rows, round_scores, score_rows, why_stopped
from fedpft.report.wording import duration, round_line, rounds_done

if TYPE_CHECKING:  # the screen shows its first line before torch is loaded
    from fedpft.federated.messages import ClientFailure, ClientUpdate

_MIN_STAGE_SECONDS = 0.05


class Screen:
    """A `RunObserver`: on a terminal, bars for the stage, the rounds and the round's clients; elsewhere, lines.

    Each stage leaves a line when it ends, each round too when there is no terminal. Stages within a round (between
    `round_started` and `round_finished`) and those of no step and under 50 ms leave none.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = self._console.is_terminal
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<14}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(
            *columns, console=self._console, disable=not self._live, transient=True, refresh_per_second=4
        )
        self._stage: _Stage | None = None
        self._rounds: _Stage | None = None
        self._clients: TaskID | None = None
        self._scores = ""
        self._reasons: set[str] = set()

    def __enter__(self) -> Self:
        """Start the live display."""
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Take the live display away; unless the run failed, the last stage leaves its line."""
        if kind is None:
            self._end_stage()
        self._progress.stop()

    def stage(self, title: str) -> None:
        """End the previous stage and show the new one."""
        self._end_stage()
        self._stage = _Stage(title, self._progress)

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Move the stage's bar."""
        if self._stage is not None:
            self._stage.update(done, total, metrics.get("loss"))

    def note(self, line: str) -> None:
        """Print the line."""
        self._line(escape(line))

    def run_started(self, record: Mapping[str, Any]) -> None:
        """Show nothing of it: the final table has it."""

    def round_started(self, round_index: int, num_rounds: int, client_ids: Sequence[int]) -> None:
        """Show the bar of all rounds, and one of this round's clients."""
        self._end_stage()
        if self._rounds is None:
            self._rounds = _Stage("rounds", self._progress)
            self._rounds.update(round_index - 1, num_rounds, None)
        self._clients = self._progress.add_task(f"round {round_index}", total=len(client_ids), note="")

    def client_finished(self, update: "ClientUpdate") -> None:
        """Move the clients' bar."""
        if self._clients is not None:
            note = f"client {update.client_id}  loss {update.metrics['loss']:.3f}"
            self._progress.update(self._clients, advance=1, note=note)

    def client_failed(self, failure: "ClientFailure") -> None:
        """Print the client's line, with the traceback the first time that there is one for this reason."""
        if self._clients is not None:
            self._progress.update(self._clients, advance=1, note=f"client {failure.client_id}  dropped")
        self._line(f"[yellow]dropped[/yellow]: {escape(str(failure))}")
        if failure.traceback and failure.reason not in self._reasons:
            self._reasons.add(failure.reason)
            self._line(escape(failure.traceback.rstrip()))

    def round_finished(self, record: Mapping[str, Any]) -> None:
        """Move the rounds' bar, or print the round's line."""
        assert self._rounds is not None, "round_started comes first"
        assert self._clients is not None, "round_started comes first"
        self._end_stage()
        self._progress.remove_task(self._clients)
        self._clients = None
        rounds, index = self._rounds, record["round"]
        scores = round_scores(record)
        self._scores = "  ".join(scores) or self._scores
        rounds.update(index, rounds.total, record.get("train_loss"), self._scores)
        if not self._live:
            self._line(round_line(record, rounds.total, scores))
        if "stopped" in record:
            rounds.update(index, index, None, f"{self._scores}  stopped early: {record['stopped']}")
        if index == rounds.total:
            self._leave_line(rounds)
            self._rounds = None

    def _end_stage(self) -> None:
        if self._stage is not None:
            in_round = self._clients is not None
            self._leave_line(self._stage, quiet=in_round or self._stage.is_empty)
            self._stage = None

    def _leave_line(self, stage: "_Stage", quiet: bool = False) -> None:
        stage.remove()
        if not quiet:
            mark, arrow = ("[green]✓[/green] ", "→") if self._live else ("", "->")
            self._line(mark + escape(stage.summary(arrow)))

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


class _Stage:
    """A bar with its clock and the first and last loss."""

    def __init__(self, title: str, progress: Progress) -> None:
        self.title = title
        self.total: int | None = None
        self._progress = progress
        self._task = progress.add_task(escape(title), total=None, note="")
        self._start = time.monotonic()
        self._losses: list[float] = []
        self._note = ""

    @property
    def is_empty(self) -> bool:
        return self.total is None and time.monotonic() - self._start < _MIN_STAGE_SECONDS

    def update(self, done: int, total: int | None, loss: float | None, note: str = "") -> None:
        self.total, self._note = total, note
        if loss is not None:
            self._losses = [*self._losses[:1], loss]
        shown = [f"loss {loss:.3g}"] if loss is not None else []
        self._progress.update(self._task, completed=done, total=total, note="  ".join([*shown, note]))

    def remove(self) -> None:
        self._progress.remove_task(self._task)

    def summary(self, arrow: str) -> str:
        title = f"{self.total} {self.title}" if self.title == "rounds" else self.title
        losses = f" {arrow} ".join(f"{loss:.3g}" for loss in self._losses)
        parts = [title, duration(time.monotonic() - self._start), f"loss {losses}" if losses else "", self._note]
        return "  ".join(part for part in parts if part)


def print_note(console: Console, line: str) -> None:
    """Print what a user may want to change: a line about settings, before a run or in its plan."""
    console.print(f"[yellow]note[/yellow]: {escape(line)}", highlight=False, soft_wrap=True)


def print_result(console: Console, result: Mapping[str, Any], paths: Mapping[str, Path | str]) -> None:
    """Print the keys of `result.json` that a user asks for first, and the paths (or URLs) written, by name."""
    facts = facts_table(f"{result['name']}: {result['method']}, {rounds_done(result)}, seed {result['seed']}")
    for row in (*score_rows(result), *attack_rows(result), *client_rows(result)):
        facts.add_row(*row)
    facts.add_section()
    for row in fidelity_rows(result):
        facts.add_row(*row)
    facts.add_section()
    for row in privacy_rows(result):
        facts.add_row(*row)
    facts.add_section()
    for row in cost_rows(result):
        facts.add_row(*row)
    if made := result.get("construction"):
        origin = "from cache" if made["cached"] else "built"
        facts.add_row("sub-FM", (made["key"] or "")[:SHOWN_DIGITS], f"{origin}, {duration(made['seconds'])}")
    facts.add_row("wall time", duration(result["wall_seconds"]), "")
    console.print(facts)
    if note := client_note(result):
        console.print(f"{note}\n", markup=False, highlight=False, soft_wrap=True)
    if why := why_stopped(result):
        line = f"stopped early, after {rounds_done(result)}: {why}\n"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if line := cosine_line(result, console.width):
        console.print(f"{line}\n", highlight=False)
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        console.print(f"{name:<{width}}  {path}", markup=False, highlight=False, soft_wrap=True)
    if never := never_trained_line(result):
        console.print(never, style="red", markup=False, highlight=False, soft_wrap=True)


def facts_table(title: str | None = None) -> Table:
    """Return an empty table of facts: what, how much, and a remark."""
    table = Table(title=title, title_justify="left", box=SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    return table
