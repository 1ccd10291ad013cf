"""What a user sees of a sweep: a live table of its trials, or a line for each that ends, and the points at the end."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fedpft.metrics.table import metric_row
from fedpft.report.scores import metric_title, metric_value
from fedpft.report.wording import duration

_MAX_ROWS = 20
_PRIMARY = ("fm", "sub_fm")
"""Keys whose numbers are those of the task's primary metric."""


@dataclass
class _Row:
    status: str = "running"
    round: int = 0
    value: float | None = None
    started: float = 0.0
    seconds: float = 0.0


class SweepScreen:
    """A watcher of trials: on a terminal a live table, elsewhere a line for each trial that ends.

    Args:
        console: where.
        metric: the sweep's.
        total: number of trials.

    """

    def __init__(self, console: Console, metric: str, total: int) -> None:
        self._console, self._metric, self._total = console, metric, total
        self._rows: dict[str, _Row] = {}
        self._live = Live(console=console, get_renderable=self._table, transient=True, refresh_per_second=2)

    def __enter__(self) -> Self:
        """Start the live table."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        self._live.stop()

    def trial_started(self, name: str) -> None:
        """Show it as running; its time counts from its first start."""
        self._rows.setdefault(name, _Row(started=time.monotonic())).status = "running"

    def trial_reported(self, name: str, round_index: int, value: float) -> None:
        """Show its newest value."""
        row = self._rows.setdefault(name, _Row())
        row.round, row.value = round_index, value

    def trial_retried(self, name: str, reason: str) -> None:
        """Say why."""
        self._line(f"trial {name} failed, tried again: {reason}")

    def trial_ended(self, name: str, *, failed: bool) -> None:
        """Leave a line."""
        row = self._rows.setdefault(name, _Row(started=time.monotonic()))
        row.status, row.seconds = "failed" if failed else "done", time.monotonic() - row.started
        ended = sum(row.status != "running" for row in self._rows.values())
        value = "" if row.value is None else f"  {self._metric} {row.value:.4f}"
        line = f"trial {ended}/{self._total}  {name}  round {row.round}{value}  {duration(row.seconds)}"
        self._line(line + "  failed" * failed)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table("trial", "round", self._metric, "time", box=SIMPLE)
        running = [(name, row) for name, row in self._rows.items() if row.status == "running"]
        for name, row in running[:_MAX_ROWS]:
            value = "" if row.value is None else f"{row.value:.4f}"
            table.add_row(escape(name), str(row.round), value, duration(time.monotonic() - row.started))
        table.caption = f"{len(self._rows) - len(running)} of {self._total} trials ended"
        return table


class SilentWatcher:
    """Shows nothing."""

    def trial_started(self, name: str) -> None:
        """Ignore."""

    def trial_reported(self, name: str, round_index: int, value: float) -> None:
        """Ignore."""

    def trial_retried(self, name: str, reason: str) -> None:
        """Ignore."""

    def trial_ended(self, name: str, *, failed: bool) -> None:
        """Ignore."""


def print_trials(console: Console, names: Sequence[str], total: int, folder: str) -> None:
    """Print what a sweep would run: the trials that are known, and how many there will be."""
    for name in names:
        console.print(name, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{total} trials in {folder}", markup=False, highlight=False, soft_wrap=True)


def print_sweep(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the points, best first, and why trials failed."""
    points, metric = summary["points"], summary["task_metric"] if summary["metric"] in _PRIMARY else None
    keys = list(points[0]["settings"]) if points else []
    title = f"{metric_title(metric)}, {summary['metric']}" if metric else summary["metric"]
    table = Table(*keys, title, "seeds", "round", "trials", box=SIMPLE)
    for point in points:
        settings = [escape(str(point["settings"].get(key, ""))) for key in keys]
        status = ", ".join(f"{number} {name}" for name, number in point["status"].items())
        seeds = ", ".join(map(str, point["seeds"]))
        value = with_interval(point["mean"], point["interval"], metric)
        table.add_row(*settings, value, seeds, str(point["round"]), status)
    console.print(table)
    for trial in summary["trials"]:
        if trial["error"]:
            line = f"{trial['name']} failed: {trial['error']}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    since = " since --resume" if summary["resumed"] else ""
    console.print(f"{len(summary['trials'])} trials, {duration(summary['wall_seconds'])}{since}", highlight=False)


def with_interval(mean: float | None, half: float | None, metric: str | None) -> str:
    """Return e.g. `86.9 % ± 0.4`: a mean over seeds and half of its 95 % interval, in the metric's unit."""
    if mean is None:
        return "-"
    if metric is None:
        return f"{mean:.4g}" + (f" ± {half:.2g}" if half is not None else "")
    unit = 100 if metric_row(metric).is_fraction else 1
    return metric_value(mean, metric) + (f" ± {unit * half:.{1 if unit == 100 else 3}f}" if half is not None else "")
