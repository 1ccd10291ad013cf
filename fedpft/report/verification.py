"""The table of `fedpft verify`."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_checks(console: Console, differences: Mapping[str, str | None], causes: Sequence[str]) -> None:
    """Print a row for each check, by name, with its first difference if there is one, and the likely causes."""
    table = Table(box=SIMPLE)
    for title in ("check", "same?", "first difference"):
        table.add_column(title, overflow="fold")
    for name, difference in differences.items():
        table.add_row(name, "[red]no[/red]" if difference else "[green]yes[/green]", escape(difference or ""))
    console.print(table)
    for cause in causes:
        console.print(f"may be: {cause}", markup=False, highlight=False, soft_wrap=True)
