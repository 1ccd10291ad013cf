"""A folder that the board shows: where it is, what people call it, and whether anybody writes to it."""

import hashlib
from pathlib import Path

from fedpft.board.files import Holder


def key_of(folder: Path) -> str:
    """Return what stands for a folder in addresses: no address ever holds a path."""
    return hashlib.blake2b(str(folder).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()


class BoardFolder:
    """The folder of a run or of a sweep.

    Args:
        folder: where it is.
        title: how people know it, from the board's folders.

    """

    def __init__(self, folder: Path, title: str) -> None:
        self.folder, self.title, self.key = folder, title, key_of(folder)
        self.holder = Holder(folder)
