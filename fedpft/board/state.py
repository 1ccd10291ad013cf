"""PURE: what a run or a sweep is doing, from its files alone.

    running    somebody holds the folder and gives signs of life
    stale      somebody holds it, but has been silent for too long: killed, or its machine is gone
    failed     it ended with an error, its last rounds did not count, or its sweep says that it failed
    stopped    nobody holds it and it has no result: interrupted, or stopped by a sweep's scheduler
    finished   it has a result

Clocks of two machines may differ. So who was seen to give a sign of life while the board looked on lives, whatever the
sign's time; only for the first look the file's time has to do.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from fedpft.storage.lock import BEAT_SECONDS, SILENT_SECONDS

State = Literal["running", "stale", "failed", "stopped", "finished"]
STATES: tuple[State, ...] = ("running", "stale", "failed", "stopped", "finished")


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A holder's last sign of life."""

    file_time: float
    """Of the holder's file, seconds of its file system's clock."""
    seen: float | None
    """When it was seen to change, seconds of the board's clock; None: it has not changed while the board looked on."""


def is_alive(holder: Mapping[str, Any], sign: Sign, now: float) -> bool:
    """Return whether who wrote `.lock.json` still works.

    Args:
        holder: its content: `host`, `pid`.
        sign: the last one.
        now: by the board's clock.

    """
    silences = [now - sign.seen] if sign.seen is not None else []
    if (age := now - sign.file_time) > -BEAT_SECONDS:  # a time in the future tells nothing
        silences.append(age)
    silence = min(silences, default=SILENT_SECONDS)
    is_here = holder.get("host") == platform.node() and isinstance(holder.get("pid"), int)
    is_gone = is_here and not psutil.pid_exists(holder["pid"])
    # a container may have the host's name but processes of its own: a sign of life counts more than a missing process
    return silence < (2 * BEAT_SECONDS if is_gone else SILENT_SECONDS)


def state_of(*, has_result: bool, alive: bool | None, has_failed: bool) -> State:
    """Return the state; `alive`: of the holder, None if there is none."""
    if has_result:
        return "finished"
    if alive:
        return "running"
    if has_failed:
        return "failed"
    return "stopped" if alive is None else "stale"
