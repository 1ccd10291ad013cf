"""PURE: which clients were asked to train, and gave nothing in the whole run."""

from collections.abc import Iterable, Mapping
from typing import Any


def never_through(records: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the clients that were dropped from every round that they were in, by id.

    Args:
        records: of all rounds, with `clients` whose updates were good and, where there are any, `dropped` ones.

    """
    asked: set[int] = set()
    trained: set[int] = set()
    for record in records:
        asked.update(record.get("dropped", ()))
        trained.update(record["clients"])
    return sorted(asked - trained)
