"""What `fedpft cache` prints."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.filesize import decimal as format_bytes
from rich.table import Table

from fedpft.construct.store import Cleared, Entry

SHOWN_DIGITS = 12
"""Of a key: enough to tell entries apart and to name one to `fedpft cache clear`."""

_UNITS = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))


def print_entries(console: Console, folder: Path, entries: Sequence[Entry]) -> None:
    """Print a row for each entry, in the given order, and what they take together."""
    now = time.time()
    table = Table("key", "FM", "sub-FM", "age", "size", "last used", box=SIMPLE)
    for entry in entries:
        size, last_used = format_bytes(entry.num_bytes), f"{_span(now - entry.last_used)} ago"
        table.add_row(entry.key[:SHOWN_DIGITS], *_origin(entry.content, now), size, last_used)
    if entries:
        console.print(table)
    _print_total(console, "sub-FM(s)", folder, entries)


def print_data(console: Console, folder: Path, entries: Sequence[Entry]) -> None:
    """Print the training data that were prepared on disk, as :func:`print_entries`; nothing if there are none."""
    if not entries:
        return
    now = time.time()
    table = Table("key", "task", "examples", "age", "size", "last used", box=SIMPLE)
    for entry in entries:
        size, last_used = format_bytes(entry.num_bytes), f"{_span(now - entry.last_used)} ago"
        table.add_row(entry.key[:SHOWN_DIGITS], *_data_origin(entry.content, now), size, last_used)
    console.print(table)
    _print_total(console, "prepared data set(s)", folder, entries)


def _print_total(console: Console, what: str, folder: Path, entries: Sequence[Entry]) -> None:
    total = format_bytes(sum(entry.num_bytes for entry in entries))
    console.print(f"{len(entries)} {what}, {total} in {folder}", markup=False, highlight=False, soft_wrap=True)


def print_cleared(console: Console, cleared: Cleared, what: str = "sub-FM(s)") -> None:
    """Say what was freed, and what was left because it is in use."""
    left = f"; {cleared.num_in_use} in use, left" if cleared.num_in_use else ""
    console.print(
        f"{cleared.num_entries} {what} removed, {format_bytes(cleared.num_bytes)} freed{left}", highlight=False
    )


def _origin(content: Mapping[str, Any], now: float) -> tuple[str, str, str]:
    """Return the FM, how the sub-FM was made and how long ago, from its `entry.json`."""
    try:
        ingredients = content["ingredients"]
        fm, constructor, layers = (ingredients[section] for section in ("fm", "constructor", "align_layers"))
        steps = f", {layers['num_steps']} steps" if "num_steps" in layers else ""
        aligned = "not aligned" if layers["kind"] == "none" else layers["kind"] + steps
        made = f"{_construction(constructor)}; {aligned}; seed {ingredients['seed']}"
        return f"{fm['model_type']} {fm['digest'][:SHOWN_DIGITS]}", made, _span(now - content["created"])
    except (KeyError, TypeError, ValueError):
        return "", "unfinished, damaged, or of another version", ""


def _data_origin(content: Mapping[str, Any], now: float) -> tuple[str, str, str]:
    """Return the task, how many training examples it has and how long ago they were prepared, from its `entry.json`."""
    try:
        return str(content["origin"]), f"{content['num_examples']:,}", _span(now - content["created"])
    except (KeyError, TypeError, ValueError):
        return "unfinished, damaged, or of another version", "", ""


def _construction(constructor: Mapping[str, Any]) -> str:
    if "kept_layers" in constructor:
        return f"{len(constructor['kept_layers'])} layers"
    return f"{constructor['retained_ratio']:.3g} by {constructor['scorer']}"


def _span(seconds: float) -> str:
    """Return a time span in its largest unit that holds at least two."""
    name, unit = next(((name, unit) for name, unit in _UNITS if seconds >= 2 * unit), _UNITS[-1])
    return f"{max(0, int(seconds // unit))} {name}"
