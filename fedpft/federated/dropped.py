"""PURE: which clients were asked to train, and gave nothing in the whole run; its numbers then mislead."""

from collections.abc import Iterable, Mapping
from typing import Any

_MAX_SHOWN = 20


def never_through(records: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the clients that were dropped from every round that they were in, by id.

    Args:
        records: of all rounds, with `clients` whose updates were good and, where there are any, `dropped` ones; or with
            neither, of a run that keeps them back.

    """
    asked: set[int] = set()
    trained: set[int] = set()
    for record in records:
        asked.update(record.get("dropped", ()))
        trained.update(record.get("clients", ()))
    return sorted(asked - trained)


def never_trained_line(result: Mapping[str, Any]) -> str | None:
    """Return what to say of a finished run's clients that never got through; None: there are none."""
    if not (never := result.get("never_trained")):
        return None
    shown = ", ".join(map(str, never[:_MAX_SHOWN])) + (", ..." if len(never) > _MAX_SHOWN else "")
    return f"never trained: {len(never)} of the clients that were drawn, {shown}; rounds.jsonl has their failures"


def why_not_counted(result: Mapping[str, Any], *, allow_dropped: bool) -> str | None:
    """Return why a finished run's number is in no mean and no table; None: it is."""
    return None if allow_dropped else never_trained_line(result)
