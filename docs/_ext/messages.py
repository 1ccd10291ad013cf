"""The table of what leaves whom, made from the messages' dataclasses."""

from dataclasses import fields
from typing import Any

import settings

from fedpft.federated.crossings import CROSSINGS, SIZES


def leaving() -> str:
    """Return a table of fields for each message."""
    return "\n\n".join(_message(kind) for kind in CROSSINGS)


def _message(kind: Any) -> str:
    crossing = CROSSINGS[kind]
    about = [f"## `{kind.__name__}`: {crossing.sender} to {crossing.reader}", "", f"Sent {crossing.when}.", ""]
    meanings = {name: text for base in reversed(kind.__mro__[:-1]) for name, text in settings.meanings(base).items()}
    rows = ["| field | size | of a simulation only | meaning |", "| --- | --- | --- | --- |"]
    for entry in fields(kind):
        mark = "yes" if entry.name in crossing.only_in_a_simulation else ""
        cells = (f"`{entry.name}`", SIZES.get(entry.name, "some bytes"), mark, meanings.get(entry.name, ""))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*about, *rows])
