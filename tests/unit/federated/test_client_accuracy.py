import numpy as np
import pytest

from fedpft.data.partition import Partition
from fedpft.federated.client_accuracy import client_accuracy


def test_clients_count_once_each_and_the_worst_tenth_is_rounded_up():
    sizes = np.array([4, 0, 1, 2, *[1] * 8])
    right = np.array([1, 0, 0, 0, 1, 1, 0, *[1] * 8])
    found = client_accuracy(right, Partition.of_sizes(np.arange(15), sizes))
    accuracies = [0.25, 1.0, 0.5, *[1.0] * 8]
    assert found["client_accuracies"] == [0.25, None, 1.0, 0.5, *[1.0] * 8]
    spread = found["client_accuracy"]
    assert spread["mean"] == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert spread["variance"] == pytest.approx(np.var(accuracies), abs=1e-6)
    assert spread["worst_decile"] == pytest.approx((0.25 + 0.5) / 2), "2 of 11"
    assert (spread["min"], spread["max"]) == (0.25, 1.0)
    assert (spread["clients"], spread["without"], spread["examples"]) == (11, 1, 15)


def test_where_nobody_holds_out_anything_there_is_nothing_to_say():
    assert client_accuracy(np.zeros(0), Partition.of_sizes(np.arange(0), np.zeros(3, dtype=int))) == {}
