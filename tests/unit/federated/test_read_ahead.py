"""Rows of the next clients are read in order, from disk alone."""

import datasets
import numpy as np

from fedpft.data.partition import Partition
from fedpft.federated import read_ahead
from fedpft.federated.read_ahead import ReadAhead

PARTITION = Partition.of_sizes(np.array([3, 1, 0, 2]), np.array([2, 2]))


def test_the_clients_rows_are_touched_and_others_left_alone(tmp_path, monkeypatch):
    rows = datasets.Dataset.from_dict({"x": [0, 1, 2, 3]})
    rows.save_to_disk(tmp_path / "rows")
    ahead, read = ReadAhead(datasets.load_from_disk(tmp_path / "rows"), PARTITION), []
    get = datasets.Dataset.__getitem__
    monkeypatch.setattr(datasets.Dataset, "__getitem__", lambda self, key: read.append(list(key)) or get(self, key))
    assert [future.result(10) for future in ahead.begin([1, 0])] == [None, None]
    assert read == [[0, 2], [3, 1]]


def test_rows_in_memory_and_clients_that_do_not_exist_are_no_trouble(tmp_path):
    rows = datasets.Dataset.from_dict({"x": [0, 1, 2, 3]})
    assert ReadAhead(rows, PARTITION).begin([0]) == []
    rows.save_to_disk(tmp_path / "rows")
    (future,) = ReadAhead(datasets.load_from_disk(tmp_path / "rows"), PARTITION).begin([7])
    assert isinstance(future.exception(10), IndexError)


def test_pages_are_let_go_of_after_each_client(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"x": [0, 1, 2, 3]}).save_to_disk(tmp_path / "rows")
    ahead, told = ReadAhead(datasets.load_from_disk(tmp_path / "rows"), PARTITION), []
    monkeypatch.setattr(read_ahead, "let_go", lambda: told.append(None))
    for future in ahead.begin([1, 0]):
        future.result(10)
    assert len(told) == 2
