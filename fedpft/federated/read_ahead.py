"""Rows on disk are read before they are needed: those of the next clients, while the last ones train."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from datasets import Dataset

from fedpft.data.partition import Partition
from fedpft.data.sources.mapped import let_go


class ReadAhead:
    """Lets the system fetch rows into its page cache, from where every process of the node has them.

    Nothing is kept here and no result depends on it: clients that come after all others, or go elsewhere, cost a few
    reads. Rows that are in memory are left alone.
    """

    def __init__(self, rows: Dataset, partition: Partition) -> None:
        self._partition = partition
        self._rows = rows.with_format("arrow") if rows.cache_files else None
        self._thread = ThreadPoolExecutor(1, "read-ahead") if self._rows is not None else None

    def begin(self, client_ids: Iterable[int]) -> "list[Future[None]]":
        """Begin to read these clients' rows, in this order; return at once."""
        if self._thread is None:
            return []
        return [self._thread.submit(self._touch, client_id) for client_id in client_ids]

    def _touch(self, client_id: int) -> None:
        assert self._rows is not None
        self._rows[self._partition.shard(client_id)].combine_chunks()  # a copy, made and dropped without Python's lock
        let_go()  # this thread reads faster than any other
