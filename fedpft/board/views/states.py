"""What is said of a state: of a run, a sweep, a cluster's job."""

from fedpft.board.views.page import text

GLYPHS = {"pending": "…", "running": "▶", "finished": "✓", "failed": "✕", "stopped": "■", "stale": "?"}
"""State -> sign, so that no state is told by its colour alone."""
MEANINGS = {
    "pending": "its cluster has not started it yet",
    "running": "a process works on it",
    "stale": "its process is silent: killed, or its machine is gone",
    "failed": "it ended with an error, its last rounds did not count, or its sweep says so",
    "stopped": "no process works on it, and it has no result",
    "finished": "it has a result",
}
"""State -> what it means; only a job is pending."""


def state_mark(state: str, reason: str | None = None, doing: str = "") -> str:
    """Return a state with its sign; below it why it ended without a result, or what it does, where that is known."""
    sign = f'<span aria-hidden="true">{GLYPHS[state]}</span>'
    more = reason if state in ("stopped", "failed") else doing
    why = f'<span class="why quiet">{text(more)}</span>' if more else ""
    return f'<span class="state {state}" title="{MEANINGS[state]}">{sign} {state}</span>{why}'
