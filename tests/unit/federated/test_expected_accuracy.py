import numpy as np
import pytest

from fedpft.federated import expected_accuracy
from fedpft.federated.expected_accuracy import client_expected_accuracy


def test_a_client_expects_the_accuracies_of_its_classes_weighted_by_its_own_counts():
    found = client_expected_accuracy([[[3, 1], [0, 4]], [[2, 2]]], [0.5, 1.0])
    assert found["values"] == [0.625, 1.0, 0.75]
    assert (found["mean"], found["min"], found["max"]) == (pytest.approx(0.791667), 0.625, 1.0)
    assert found["p10"] == pytest.approx(0.625 + 0.2 * (0.75 - 0.625))


def test_of_clients_that_own_the_evaluation_sets_mix_it_is_the_accuracy_itself():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    right = rng.random(500) < 0.3 + 0.2 * labels
    by_class = [right[labels == label].mean() for label in range(4)]
    mix = np.bincount(labels, minlength=4)
    found = client_expected_accuracy([[mix, 3 * mix]], by_class)
    assert found["values"] == pytest.approx([right.mean()] * 2, abs=1e-6)


def test_a_class_without_evaluation_examples_counts_for_nobody_and_a_client_of_such_classes_has_no_accuracy():
    found = client_expected_accuracy([[[5, 0, 1], [7, 0, 0], [0, 0, 0]]], [None, 0.5, 1.0])
    assert found["values"] == [1.0, None, None]
    assert found["mean"] == found["min"] == found["p10"] == 1.0
    assert client_expected_accuracy([[[1, 0]]], [None, 0.5]) == {}


def test_of_many_clients_the_first_are_listed_and_all_are_in_the_spread(monkeypatch):
    monkeypatch.setattr(expected_accuracy, "MAX_LISTED_CLIENTS", 2)
    found = client_expected_accuracy([[[3, 1], [0, 4]], [[2, 2], [4, 0]], [[0, 0]]], [0.5, 1.0])
    assert found["values"] == [0.625, 1.0]
    assert (found["clients"], found["min"], found["max"]) == (4, 0.5, 1.0)
