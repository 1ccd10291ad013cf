"""What a library writes, whole or not at all; and what each of them says of a disk that takes nothing more."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""What the system says when a file cannot grow."""

_SAID = {os.strerror(number): number for number in FULL_DISK}


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield another path to write a file or folder to; it takes the place of `path` when all of it is there.

    Raises:
        OSError: the disk is full, whatever the library that wrote makes of it.

    """
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():  # a folder takes the place of an empty one alone
            _remove(path)
        temporary.replace(path)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, Exception) and (full := full_disk(error)) is not None:
            raise OSError(full.errno, full.strerror, str(path)) from None
        raise


def full_disk(error: BaseException) -> OSError | None:
    """Return the system's error of a full disk behind an error of a library, which may only quote it; None: another."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno in FULL_DISK:
            return found
        for said, number in _SAID.items():
            if said in str(found):
                return OSError(number, said)
        found = found.__cause__ or found.__context__
    return None


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
