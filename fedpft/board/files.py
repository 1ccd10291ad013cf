"""One folder's files as they were last seen; only those that changed are opened again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedpft.board.lines import as_object, open_plain
from fedpft.board.state import Sign, is_alive
from fedpft.storage.lock import HOLDER_FILE

_LARGEST = 2**26
"""Bytes of a JSON or YAML file that is still read: a result of many clients has some millions."""


class Stamp(NamedTuple):
    """What changes when a file does."""

    inode: int
    size: int
    time: int
    """Of its last change, ns."""


def stamp(path: Path) -> Stamp | None:
    """Return a file's; None: it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)


class CachedFile:
    """The content of a file, read when it is asked for and has changed."""

    def __init__(self, path: Path, read: Callable[[bytes], dict[str, Any] | None]) -> None:
        self._path, self._read = path, read
        self.stamp: Stamp | None = None
        """Of the last look."""
        self._read_at: Stamp | None = None
        self._content: dict[str, Any] | None = None

    def look(self) -> bool:
        """Return whether the file changed since the last look."""
        before, self.stamp = self.stamp, stamp(self._path)
        return self.stamp != before

    @property
    def is_read(self) -> bool:
        """Whether `content` costs nothing."""
        return self.stamp == self._read_at

    @property
    def content(self) -> dict[str, Any]:
        """What is in it; of a file that cannot be read what was in it before, at first nothing."""
        if not self.is_read:
            self._read_at = self.stamp
            try:
                with open_plain(self._path) as file:
                    found = self._read(file.read(_LARGEST))
            except OSError:
                found = None
            if found is not None or self.stamp is None:
                self._content = found
        return self._content or {}


class Holder:
    """Who writes into a folder."""

    def __init__(self, folder: Path) -> None:
        self._file = CachedFile(folder / HOLDER_FILE, as_object)
        self._seen: float | None = None
        self._is_first = True

    def look(self, now: float) -> None:
        """Look for a sign of life."""
        if self._file.look() and not self._is_first:
            self._seen = now
        self._is_first = False

    @property
    def content(self) -> dict[str, Any]:
        """`host`, `pid`, `since`, `what`, `doing`; nothing if nobody does."""
        return self._file.content if self._file.stamp else {}

    def alive(self, now: float) -> bool | None:
        """Return whether it still works; None: there is none."""
        if self._file.stamp is None:
            return None
        return is_alive(self.content, Sign(file_time=self._file.stamp.time / 1e9, seen=self._seen), now)


def as_settings(text: bytes) -> dict[str, Any] | None:
    """Return the mapping in a file of YAML; None for anything else."""
    try:
        found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
