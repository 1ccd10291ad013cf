"""Files of rows in memory maps whose pages are let go of again, so that no process grows with what it reads.

A page of a mapped file counts as memory of the process that read it, until the system takes it back; whoever limits
that memory does not ask whose page it is. So a thread says a few times a second that no page is needed any more. Rows
stay valid: what is read again comes from the system's cache of files, or from disk. Where the system cannot be told,
pages stay until it wants them back, as those of any mapped file do.

A map holds a shared lock on its file, as long as it lives: who clears the cache sees that the file is in use.
"""

import mmap
import threading
import time
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

import datasets
import pyarrow as pa
from datasets.table import ConcatenationTable, MemoryMappedTable, Table

from fedpft.data.sources.in_use import hold

SECONDS_BETWEEN = 0.1
"""Between two times that pages are let go of: what a process reads meanwhile is the most that it holds."""

_maps: "WeakSet[mmap.mmap]" = WeakSet()
_lock = threading.Lock()
_thread: threading.Thread | None = None


def mapped_table(file: str | Path) -> pa.Table:
    """Return the rows of an Arrow stream's file, in a map of this process whose pages are let go of."""
    with open(file, "rb") as opened:
        hold(opened)
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    _watch(memory)
    return pa.ipc.open_stream(pa.py_buffer(memory)).read_all()


def remapped(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return the data set, which `datasets` has mapped, with its files in maps whose pages are let go of."""
    dataset._data = _remapped(dataset._data)
    return dataset


def let_go() -> None:
    """Let go of all pages that were read, now."""
    with _lock:
        maps = [*_maps]
    for memory in maps:
        with suppress(OSError):  # then they stay
            memory.madvise(mmap.MADV_DONTNEED)


def _remapped(table: Table) -> Table:
    if isinstance(table, ConcatenationTable):
        return ConcatenationTable.from_blocks([[_remapped(block) for block in blocks] for blocks in table.blocks])
    if isinstance(table, MemoryMappedTable):
        rows = table._apply_replays(mapped_table(table.path), table.replays)
        return MemoryMappedTable(rows, table.path, table.replays)
    return table


def _watch(memory: mmap.mmap) -> None:
    global _thread
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    with _lock:
        _maps.add(memory)
        if _thread is None or not _thread.is_alive():  # a process that was forked has no thread
            _thread = threading.Thread(target=_let_go_again_and_again, name="let-go-of-pages", daemon=True)
            _thread.start()


def _let_go_again_and_again() -> None:
    """Go on until no file is mapped."""
    global _thread
    while True:
        time.sleep(SECONDS_BETWEEN)
        let_go()
        with _lock:
            if not _maps:
                _thread = None
                return
