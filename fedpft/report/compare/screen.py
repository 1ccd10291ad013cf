"""What `fedpft compare` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.filesize import decimal as format_bytes
from rich.markup import escape
from rich.table import Table

from fedpft.report.clients import VIEWS
from fedpft.report.compare.comparison import Comparison
from fedpft.report.compare.costs import AXES
from fedpft.report.compare.effects import COLUMNS, effect_words
from fedpft.report.compare.elsewhere import elsewhere_note
from fedpft.report.compare.groups import short_key
from fedpft.report.compare.noise import noise_line
from fedpft.report.scores import metric_title


def print_comparison(console: Console, comparison: Comparison, files: Mapping[str, Path]) -> None:
    """Print the groups, what they cost, the settings that differ, the verdicts, what was left out, and the files."""
    labels = [group.label for group in comparison.groups]
    scores = _table("group", f"{metric_title(comparison.metric)} [95 %]", "seeds", "minus baseline", wraps=True)
    for group in comparison.groups:
        label, score = group.label, comparison.score(group.label)
        scores.add_row(escape(label), escape(score), str(len(group.runs)), comparison.change(label))
    console.print(scores)
    fronts = {axis: comparison.front(axis) for axis in comparison.axes}
    prices = _table("costs, *: Pareto", *(AXES[axis].short for axis in fronts), wraps=True)
    for label in labels:
        cells = (_price(comparison.price(label, axis), label in front) for axis, front in fronts.items())
        prices.add_row(escape(label), *cells)
    console.print(prices)
    for view in VIEWS:
        if spreads := comparison.client_spreads(view):
            clients = _table(view.row, *view.spread.values())
            for label, spread in spreads.items():
                clients.add_row(escape(label), *(view.shown(key, spread[key]) for key in view.spread))
            console.print(clients)
    if rows := comparison.setting_rows():
        settings = _table("settings", *(short_key(key) for key, _ in rows), wraps=True)
        for index, label in enumerate(labels):
            settings.add_row(escape(label), *(escape(values[index]) for _, values in rows))
        console.print(settings)
    if effects := comparison.effects:
        told = _table("effect of a setting", *COLUMNS)
        for effect in effects:
            told.add_row(short_key(effect.key), *effect_words(effect))
        console.print(told)
    said = [comparison.verdict(label) for label in labels if label in comparison.differences]
    if noise := comparison.noise:
        said.append(noise_line(noise, comparison.metric))
    if said_of_others := elsewhere_note(comparison.groups):
        said.append(said_of_others)
    for line in [*said, *(f"left out: {left.folder}: {left.reason}" for left in comparison.left_out)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()
    for name, path in files.items():
        size = format_bytes(path.stat().st_size)
        console.print(f"{name:<5} {path}  {size}", markup=False, highlight=False, soft_wrap=True)


def print_differences(console: Console, names: Sequence[str], found: Mapping[str, tuple[str, str]]) -> None:
    """Print what differs between two runs, a row for each name."""
    if not found:
        console.print("nothing that the runs recorded differs")
        return
    table = _table("what differs", *names, wraps=True)
    for name, values in found.items():
        table.add_row(escape(name), *map(escape, values))
    console.print(table)


def _price(price: str | None, is_optimal: bool) -> str:
    return (price or "") + "*" * is_optimal


def _table(first: str, *titles: str, wraps: bool = False) -> Table:
    """Return a table whose labels are broken where it is too wide, and if it `wraps`, all else too."""
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column(first, overflow="fold")
    for title in titles:
        table.add_column(escape(title), justify="right", no_wrap=not wraps, overflow="fold")
    return table
