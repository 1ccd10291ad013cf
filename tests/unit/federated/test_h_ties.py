"""H-TIES, against numbers computed by hand."""

import numpy as np
import pytest

from fedpft.federated.aggregators.ties import cosines, h_ties, trimmed


def test_equal_updates_give_themselves_and_one_gives_its_largest_numbers():
    update = np.array([[3.0, -1.0, 0.5, 2.0]], dtype=np.float32)
    assert np.allclose(h_ties(np.repeat(update, 4, axis=0), 1.0), update[0])
    assert np.array_equal(h_ties(update, 0.5), [3, 0, 0, 2])


def test_two_updates_are_equally_like_each_other_and_keep_equally_much():
    for seed in range(8):
        pair = np.random.default_rng(seed).normal(size=(2, 10)).astype(np.float32)
        assert np.array_equal(h_ties(pair, 1.0) != 0, h_ties(pair[::-1], 1.0) != 0)
        same_signs = np.abs(pair)
        weight = np.array([0.5, 0.5])
        assert h_ties(same_signs, 1.0) == pytest.approx(weight @ same_signs), "neither is trimmed"


def test_a_sign_without_clear_dominance_gives_0_and_a_dominant_one_the_mean_of_those_that_have_it():
    updates = np.array([[4, 1, 1, 1, 0.1], [4, -1, 0.9, 1, 0.2], [-1, 0.02, -4, 0.05, -0.1]], dtype=np.float32)
    alike = cosines(updates)
    assert alike[0, 1] > 0 > alike[0, 2]
    assert alike[1, 2] < 0, "the third is least like the others: it keeps 4 of 5, not the 0.02"
    a, b, c = np.exp(np.abs(alike).sum(axis=1)) / np.exp(np.abs(alike).sum(axis=1)).sum()
    assert 4 * c > 1.1 * (a + 0.9 * b)
    assert max(a, b) < 1.1 * min(a, b), "of the second number no sign is dominant"
    mean = [4, 0, -4, (a + b + 0.05 * c) / (a + b + c), (0.1 * a + 0.2 * b) / (a + b)]
    assert h_ties(updates, 1.0) == pytest.approx(mean)


def test_cosines_of_an_update_that_is_0_are_0_and_nothing_is_divided_by_it():
    updates = np.array([[0, 0], [1, 1]], dtype=np.float32)
    assert np.allclose(cosines(updates), [[0, 0], [0, 1]])
    assert np.isfinite(h_ties(updates, 0.8)).all()
    assert np.array_equal(h_ties(np.zeros((3, 4), dtype=np.float32), 0.8), np.zeros(4))


@pytest.mark.parametrize(("share", "kept"), [(1.0, 5), (0.5, 2), (0.01, 1)])
def test_the_largest_numbers_stay(share, kept):
    update = np.array([0.1, -5, 3, 0.2, -1], dtype=np.float32)
    found = trimmed(update, share)
    assert np.count_nonzero(found) == kept
    assert set(np.flatnonzero(found)) == set(np.argsort(-np.abs(update))[:kept])
