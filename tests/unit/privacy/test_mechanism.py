"""The mechanism's law, over many draws with fixed seeds."""

import math

import numpy as np
import pytest
from scipy.stats import kstest

from fedpft.config import ConfigError
from fedpft.privacy.mechanism import NoisySum, next_clip, share_noise

CLIP, Z, EXPECTED, SIZE = 0.5, 1.5, 40, 20_000


def released(vectors=(), *, clip=CLIP, z=Z, expected=EXPECTED, seed=0, size=SIZE):
    total = NoisySum(size, clip)
    for vector in vectors:
        total.add(vector)
    return total.release(z, expected, np.random.default_rng(seed))


def test_noise_is_normal_with_standard_deviation_z_clip_over_the_expected_number():
    sigma = Z * CLIP / EXPECTED
    draws = np.concatenate([released(seed=seed) for seed in range(10)])
    assert kstest(draws / sigma, "norm").pvalue > 0.01
    assert draws.std() == pytest.approx(sigma, rel=0.01)
    assert abs(draws.mean()) < 4 * sigma / math.sqrt(len(draws))


def test_noise_of_two_rounds_and_of_neighbouring_coordinates_is_independent():
    one, other = released(seed=1), released(seed=2)
    limit = 4 / math.sqrt(SIZE)
    assert abs(np.corrcoef(one, other)[0, 1]) < limit
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < limit


def test_noise_is_added_once_whoever_came():
    vector = np.zeros(SIZE)
    assert np.array_equal(released(), released([vector] * 100))


def test_what_is_divided_by_is_public_and_not_how_many_came():
    vector = np.full(4, 0.1)
    one, three = (released([vector] * number, z=0.0, size=4) for number in (1, 3))
    assert one == pytest.approx(vector / EXPECTED)
    assert three == pytest.approx(3 * vector / EXPECTED)


@pytest.mark.parametrize("norm", [1e-8, 0.3, 0.5, 0.500001, 7.0, 1e12])
def test_one_vector_changes_the_sum_by_no_more_than_the_clip(norm):
    vector = np.random.default_rng(0).standard_normal(1000)
    vector *= norm / np.linalg.norm(vector)
    changed = released([vector], z=0.0, expected=1, size=1000)
    assert np.linalg.norm(changed) == pytest.approx(min(norm, CLIP), rel=1e-12)
    assert np.linalg.norm(changed) <= CLIP * (1 + 1e-12)
    assert changed @ vector == pytest.approx(np.linalg.norm(changed) * np.linalg.norm(vector)), "the same direction"


def test_a_distinguisher_that_knows_all_but_one_client_is_wrong_as_often_as_the_law_says():
    # the best test of a Gaussian mechanism at z: error Phi(-1 / 2z), here for the worst vector, of the clip's length
    worst = np.zeros(50)
    worst[0] = CLIP
    rng = np.random.default_rng(3)
    scores = {True: [], False: []}
    for there in scores:
        for _ in range(4000):
            total = NoisySum(50, CLIP)
            if there:
                total.add(worst)
            scores[there].append(total.release(1.0, 1, rng)[0])
    errors = (np.mean(np.array(scores[True]) < CLIP / 2) + np.mean(np.array(scores[False]) > CLIP / 2)) / 2
    assert errors == pytest.approx(0.3085, abs=0.02)


def test_sums_are_float64():
    vectors = [np.array([1e-9, 0.4], dtype=np.float32)] * 1000
    assert released(vectors, z=0.0, expected=1, size=2)[0] == pytest.approx(1e-6, rel=1e-6)
    total = NoisySum(1, 1e9)
    for value in (1e8, 1.0, -1e8):
        total.add(np.array([value], dtype=np.float32))
    assert total.release(0.0, 1, np.random.default_rng(0))[0] == 1.0


@pytest.mark.parametrize(
    "parts", [{}, {"count_noise": 2.0}, {"counts_share": 0.3}, {"count_noise": 2.0, "counts_share": 0.3}]
)
def test_parts_cost_together_what_the_whole_release_does(parts):
    shares = share_noise(1.2, **{"count_noise": None, "counts_share": None} | parts)
    spent = [share for share in (shares.updates, shares.shortness, shares.counts) if share is not None]
    assert len(spent) == 1 + len(parts)
    assert sum(1 / share**2 for share in spent) == pytest.approx(1 / 1.2**2)
    assert shares.updates >= 1.2 - 1e-12


def test_so_little_noise_on_the_number_of_short_updates_that_none_is_left_for_them_is_refused():
    with pytest.raises(ConfigError, match=r"privacy.clip_count_noise: found 0.5, allowed: a number > 0.5,"):
        share_noise(1.0, count_noise=0.5, counts_share=None)


def test_an_adaptive_clip_finds_the_quantile_of_the_norms_from_either_side():
    norms = np.random.default_rng(0).lognormal(0, 0.5, size=2000)
    for clip in (100.0, 0.01):
        for _ in range(400):
            clip = next_clip(clip, np.mean(norms <= clip), quantile=0.75, lr=0.2)
        assert clip == pytest.approx(np.quantile(norms, 0.75), rel=0.02)
