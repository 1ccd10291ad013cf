"""Numbers in words: what the screen's lines are made of."""

from collections.abc import Mapping, Sequence
from typing import Any

_MAX_LINE_LENGTH = 80


def round_line(record: Mapping[str, Any], num_rounds: int | None, scores: Sequence[str]) -> str:
    """Return a finished round's line; one that would be too long has single spaces."""
    parts = [
        f"round {record['round']}/{num_rounds}",
        f"{len(record['clients'])} clients" if "clients" in record else "",
        f"{len(record['dropped'])} dropped" if "dropped" in record else "",
        "" if record.get("counted", True) else "does not count",
        "" if record.get("train_loss") is None else f"loss {record['train_loss']:.3f}",
        f"lr {record['lr']:.1e}",
        duration(record["seconds"]),
        *scores,
        f"stops early: {record['stopped']}" if "stopped" in record else "",
    ]
    said = [part for part in parts if part]
    line = "  ".join(said)
    return line if len(line) <= _MAX_LINE_LENGTH else " ".join(said)


def rounds_done(result: Mapping[str, Any]) -> str:
    """Return how many rounds a run did, e.g. `8 rounds`, `6 of 8 rounds`."""
    planned = result.get("stopped", {}).get("planned_rounds")
    return f"{result['rounds']} rounds" if planned is None else f"{result['rounds']} of {planned} rounds"


def duration(seconds: float) -> str:
    """Return a time, e.g. `14.1 s`, `2 min 21 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{seconds:.1f} s" if seconds < 120 else f"{minutes} min {rest} s"
