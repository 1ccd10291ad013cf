"""One process at a time writes into a folder of a run, sweep or suite; who comes second hears who, where, since when.

    output_dir/.lock        held while somebody writes, released by the system when its holder dies
    output_dir/.lock.json   who that is and what it does; its time of modification is the holder's last sign of life

A network file system may be mounted without locks between its machines: each then has a `.lock` of its own. So who gets
it also looks for a sign of life of a process on another machine. Times are compared by the clock of the file server.
"""

import errno
import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from fedpft.config import ConfigError

LOCK_FILE, HOLDER_FILE = ".lock", ".lock.json"
BEAT_SECONDS = 15.0
"""Between two signs of life."""
SILENT_SECONDS = 120.0
"""Without one, after which a holder on another machine is dead."""
_LOOK_SECONDS = 1.0
_WITHOUT_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What a file system says that has no locks; a file that exists or not does instead."""
_held: dict[Path, dict[str, Any]] = {}
"""Folder -> what this process says there of itself."""


@contextmanager
def held(folder: Path, what: str = "run", patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold a folder, which is created if there is none, and removed again if nothing was put into it.

    A process that holds it already simply goes on.

    Args:
        folder: an `output_dir`.
        what: will be in progress there, in one word.
        patience_seconds: how long to wait for who has it; the last one's processes may still be ending.

    Raises:
        ConfigError: another process holds it, or it cannot be written.

    """
    try:
        folder = folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a name with the byte 0
        raise _unusable(folder, error) from None
    if folder in _held:
        yield
        return
    try:
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        lock = _acquire(folder, patience_seconds)
    except OSError as error:
        raise _unusable(folder, error) from None
    ended = threading.Event()
    try:
        holder = _signature(what)
        _write(folder, holder)
        threading.Thread(target=_live, args=(folder / HOLDER_FILE, ended), daemon=True).start()
        _held[folder] = holder
        yield
    finally:
        _held.pop(folder, None)
        ended.set()
        with suppress(OSError):  # a disk that went away is no reason to hide why the run ended
            for name in (HOLDER_FILE, LOCK_FILE):
                (folder / name).unlink(missing_ok=True)  # while it is held: who waits for it then makes a new one
        lock.release()
        with suppress(OSError):  # something is in it
            for path in created:
                path.rmdir()


def tell(folder: Path, doing: str) -> None:
    """Tell who looks at a folder that this process holds what is going on there, in a few words; empty: nothing."""
    folder = folder.resolve()
    if folder in _held and _held[folder].get("doing", "") != doing:
        _held[folder] |= {"doing": doing}
        _write(folder, _held[folder])


def _unusable(folder: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(f"output_dir: found {str(folder)!r}, allowed: a folder that can be written; {reason}")


def _acquire(folder: Path, patience_seconds: float) -> BaseFileLock:
    """Return the lock, held."""
    give_up = time.monotonic() + patience_seconds
    while True:
        lock = _try(folder)
        if isinstance(lock, BaseFileLock):
            return lock
        if time.monotonic() >= give_up:
            raise _refusal(folder, lock)
        time.sleep(_LOOK_SECONDS)


def _try(folder: Path) -> BaseFileLock | dict[str, Any]:
    """Return the lock, held, or what is known of its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock: BaseFileLock = FileLock(folder / LOCK_FILE, thread_local=False)
    try:
        try:
            lock.acquire(blocking=False)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            lock = SoftFileLock(folder / LOCK_FILE, thread_local=False)
            lock.acquire(blocking=False)
    except Timeout:
        return _holder(folder)
    holder = _holder(folder)
    silence = _silence(folder) if holder.get("host") not in (None, platform.node()) else SILENT_SECONDS
    if silence < SILENT_SECONDS:
        lock.release()
        return holder | {"silence": silence}
    return lock


def _holder(folder: Path) -> dict[str, Any]:
    """Return what the holder wrote: `host`, `pid`, `since`, `what`, `doing`; empty: nobody did, or not yet."""
    try:
        found = json.loads((folder / HOLDER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _silence(folder: Path) -> float:
    """Return the seconds since the holder's last sign of life, by the clock of the folder's file system."""
    try:
        (folder / LOCK_FILE).touch()
        return (folder / LOCK_FILE).stat().st_mtime - (folder / HOLDER_FILE).stat().st_mtime
    except OSError:
        return SILENT_SECONDS


def _signature(what: str) -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"what": what, "pid": os.getpid(), "host": platform.node(), "since": since}


def _write(folder: Path, holder: Mapping[str, Any]) -> None:
    temporary = folder / f"{HOLDER_FILE}.tmp"
    with suppress(OSError):  # a full disk will be told of by what fills it
        temporary.write_text(json.dumps(holder) + "\n", encoding="utf-8")
        temporary.replace(folder / HOLDER_FILE)


def _live(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)


def _refusal(folder: Path, holder: dict[str, Any]) -> ConfigError:
    who = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
    what, since = holder.get("what", "run"), holder.get("since", "just now")
    found = f"{str(folder)!r}, where a {what} is in progress ({who}, since {since})"
    allowed = "another folder, or this one after its end"
    if "silence" in holder:
        allowed += f"; its last sign of life was {holder['silence']:.0f} s ago, after {SILENT_SECONDS:.0f} s it is dead"
    return ConfigError(f"output_dir: found {found}, allowed: {allowed}")
