"""A growing file of JSON lines, read piece by piece; a line that is still being written waits for the next look."""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 2**20
_MARK = 64
"""Bytes before the place of reading by which a file is known that was written anew."""


class Follower:
    """Returns what a file has got since the last look; never waits, never writes, and opens nothing but plain files.

    Args:
        path: need not exist, and may go.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset, self._inode, self._mark = 0, 0, b""
        self.is_at_end = False
        """Whether the last look came to the file's end."""

    def look(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the next complete lines, at most a MiB but at least one line, and whether they begin the file anew.

        What is no JSON object is passed over. Begun anew is a file that another one replaced, that became shorter or
        that is gone: what was read before no longer counts.

        """
        try:
            with open_plain(self._path) as file:
                return self._read(file)
        except OSError:
            was_there, self._offset, self._inode, self.is_at_end = self._inode != 0, 0, 0, True
            return [], was_there

    def _read(self, file: BinaryIO) -> tuple[list[dict[str, Any]], bool]:
        found = os.fstat(file.fileno())
        begins = found.st_ino != self._inode or found.st_size < self._offset or not self._is_marked(file)
        if begins:
            self._offset, self._inode, self._mark = 0, found.st_ino, b""
        file.seek(self._offset)
        text = b""
        while chunk := file.read(_CHUNK):
            text += chunk
            if b"\n" in chunk:
                break
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._mark = (self._mark + whole)[-_MARK:]
        self.is_at_end = len(chunk) < _CHUNK
        return [record for line in whole.splitlines() if (record := as_object(line)) is not None], begins

    def _is_marked(self, file: BinaryIO) -> bool:
        file.seek(self._offset - len(self._mark))
        return file.read(len(self._mark)) == self._mark


def last_line(path: Path, limit: int = 2**22) -> dict[str, Any] | None:
    """Return the last complete line that is a JSON object, from a file's last `limit` bytes; None: there is none."""
    try:
        with open_plain(path) as file:
            end = size = os.fstat(file.fileno()).st_size
            length = 2**14
            while end and length <= limit:
                file.seek(max(0, size - length))
                lines = file.read(size).splitlines(keepends=True)
                whole = [line for line in lines[bool(size > length) :] if line.endswith(b"\n")]
                found = next((record for line in reversed(whole) if (record := as_object(line)) is not None), None)
                if found is not None or length >= size:
                    return found
                length *= 16
    except OSError:
        pass
    return None


def open_plain(path: Path) -> BinaryIO:
    """Open a file to read; what is none, e.g. a pipe, would make a reader wait.

    Raises:
        OSError: it is not there, cannot be read, or is no plain file.

    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path}: no plain file")
    return os.fdopen(descriptor, "rb")


def as_object(text: bytes) -> dict[str, Any] | None:
    """Return a JSON object; None for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
