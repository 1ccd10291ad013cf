"""Whether prepared rows are in use: who maps a file holds a shared lock on it. Quick: without torch and `datasets`."""

from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # a system that removes no mapped file
    fcntl = None  # type: ignore[assignment]

DATA_FOLDER = "data"
"""Of prepared rows, in the cache."""


def hold(opened: BinaryIO) -> None:
    """Lock an open file until it is closed, and every map of it, which has a copy of the handle."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_held(file: Path) -> bool:
    """Whether a process has the file mapped; where there are no locks it cannot be known: False."""
    if fcntl is None:
        return False
    with file.open("rb+") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False
