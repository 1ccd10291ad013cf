"""What a user sees of a run: live bars on a terminal, plain lines elsewhere, and tables before and after it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
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
from fedpft.report.privacy import epsilon_by_round, privacy_rows, secure_rows
from fedpft.report.scores import attack_rows, round_scores, score_rows, why_stopped
from fedpft.report.wording import duration, round_line, rounds_done

if TYPE_CHECKING:  # the screen shows its first line before torch is loaded
    from fedpft.federated.messages import ClientFailure, ClientUpdate

_MIN_STAGE_SECONDS = 0.05
_MAX_CLIENT_ROWS = 20
_SHADES = "·░▒▓█"
_SHADE_LIMITS = (0.0, 0.1, 0.25, 0.5)  # largest share of each shade but the last
_LABEL_WIDTH = 7


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


def print_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """Print what `fedpft plan` knows: the resolved config, the partition, sizes, traffic, actors and warnings.

    Keys of `plan` shown: config_yaml, label_histogram (clients x labels; None: kept back), label_names, num_params_fm,
    num_params_sub_fm, num_params_adapter, num_transformer_params_fm, num_transformer_params_sub_fm,
    bytes_up_per_client_round, bytes_down_per_client_round, bytes_held_by_server, client_states_bytes, local_step,
    actors, pool, privacy, secure_aggregation, warnings; by method.
    """
    console.print(plan["config_yaml"].rstrip(), markup=False, soft_wrap=True)
    if plan["label_histogram"] is not None:
        console.print(
            "\n[bold]Partition[/bold]: label shares in each client: · none, ░ to 10 %, ▒ to 25 %, ▓ to 50 %, █ more"
        )
        for line in partition_picture(plan["label_histogram"], plan["label_names"], console.width):
            console.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")
    facts = _facts_table()
    for row in cost_rows(plan):
        facts.add_row(*row)
    facts.add_row("actors", str(plan["actors"]), f"pool {plan['pool']}")
    for row in (*privacy_rows(plan), *secure_rows(plan)):
        facts.add_row(*row)
    console.print(facts)
    if "privacy" in plan:
        console.print(f"{epsilon_by_round(plan)}\n", highlight=False, soft_wrap=True)
    for warning in plan["warnings"]:
        console.print(f"[yellow]warning[/yellow]: {escape(warning)}", highlight=False, soft_wrap=True)


def print_result(console: Console, result: Mapping[str, Any], paths: Mapping[str, Path | str]) -> None:
    """Print the keys of `result.json` that a user asks for first, and the paths (or URLs) written, by name."""
    facts = _facts_table(f"{result['name']}: {result['method']}, {rounds_done(result)}, seed {result['seed']}")
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


def partition_picture(histogram: Sequence[Sequence[int]], label_names: Sequence[str], width: int) -> Iterable[str]:
    """Return the lines of a picture of a partition, clients x labels, at most `width` columns wide.

    The shade of a cell is the label's share of the client's examples: · none, ░ to 10 %, ▒ to 25 %, ▓ to 50 %, █ more.
    """
    counts = np.asarray(histogram)  # (clients, labels)
    sizes = counts.sum(axis=1)
    shares = counts / np.maximum(sizes, 1)[:, None]
    room = (width - 16) // len(label_names)  # columns for a label, with the space after it
    cell, num_shown = (min(room - 1, _LABEL_WIDTH), None) if room >= 2 else (1, width - 16)
    gap = " " if room >= 2 else ""
    if cell >= 3:
        yield f"{'client':>6} {'size':>7}  " + gap.join(f"{name[:cell]:<{cell}}" for name in label_names)
    for client_id, share in enumerate(shares[:_MAX_CLIENT_ROWS]):
        shades = (_SHADES[np.searchsorted(_SHADE_LIMITS, value)] * cell for value in share[:num_shown])
        yield f"{client_id:>6} {sizes[client_id]:>7}  {gap.join(shades)}"
    if len(counts) > _MAX_CLIENT_ROWS:
        yield f"   ... {len(counts) - _MAX_CLIENT_ROWS} more"
    yield f"{len(counts)} clients, {counts.sum()} examples; over all clients:"
    quantities = {"size": sizes, "labels held": (counts > 0).sum(axis=1), "largest share %": 100 * shares.max(axis=1)}
    for name, values in quantities.items():
        low, median, high = np.quantile(values, (0.1, 0.5, 0.9))
        ends = (
            f"min {values.min():<6.0f} 10 % {low:<6.0f} median {median:<6.0f} 90 % {high:<6.0f} max {values.max():.0f}"
        )
        yield f"  {name:<16} {ends}"


def _facts_table(title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    return table
