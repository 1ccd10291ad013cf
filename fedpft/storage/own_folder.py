"""A folder of this user's own for what is no result: sockets, caches where the home folder takes none."""

import getpass
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

PARENTS = ("/tmp", "/var/tmp", "/dev/shm")
"""Where it may be if `TMPDIR` will not do."""


def own_folder(longest: int = sys.maxsize) -> Path:
    """Return the folder, which nobody else can write; created if there is none.

    Args:
        longest: number of bytes that its path may have.

    Raises:
        OSError: there is no place for it.

    """
    name = f"fedpft-{os.getuid()}"
    parents = [os.environ.get("TMPDIR", ""), tempfile.gettempdir(), *PARENTS]
    for parent in dict.fromkeys(filter(None, parents)):
        folder = Path(parent).resolve() / name
        if len(os.fsencode(folder)) <= longest and _is_own(folder):
            return folder
    length = f" of at most {longest} signs" if longest < sys.maxsize else ""
    raise OSError(f"found no folder for {_user()}'s temporary files, allowed: TMPDIR, a folder{length} to write into")


def _is_own(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK)
    return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"
