"""What `fedpft plugins` prints."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def print_parts(console: Console, parts: Sequence[Mapping[str, str]]) -> None:
    """Print a row for each kind of this package's parts, then one for each plug-in, with where it is from."""
    table = Table("kind", "setting", "names", "from", box=SIMPLE)
    own = [part for part in parts if part["place"] == "fedpft"]
    for (kind, setting), group in groupby(own, key=lambda part: (part["kind"], part["setting"])):
        found = list(group)
        table.add_row(kind, setting, ", ".join(part["name"] for part in found), found[0]["package"])
    others = [part for part in parts if part["place"] != "fedpft"]
    for part in others:
        table.add_row(part["kind"], part["setting"], part["name"], f"{part['package']}: {part['place']}")
    console.print(table)
    if not others:
        console.print("no plug-ins: no installed package has an entry point in the group fedpft.plugins")
