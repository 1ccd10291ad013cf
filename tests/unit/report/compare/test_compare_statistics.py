import math

import numpy as np
import pytest
from scipy import stats

from fedpft.report.compare.statistics import Difference, binomial_error, estimate, holm, paired_difference


def test_three_values_have_the_interval_of_the_table_of_students_t():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.high - found.mean == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_means_and_paired_tests_are_scipys(n):
    rng = np.random.default_rng(n)
    first, second = rng.normal(0.8, 0.05, n), rng.normal(0.75, 0.05, n)
    found = estimate(first.tolist())
    low, high = stats.t.interval(0.95, n - 1, loc=first.mean(), scale=stats.sem(first))
    assert (found.mean, found.low, found.high) == pytest.approx((first.mean(), low, high))
    reference = stats.ttest_rel(first, second)
    interval = reference.confidence_interval(0.95)
    seeds = range(n)
    difference = paired_difference(dict(zip(seeds, first, strict=True)), dict(zip(seeds, second, strict=True)))
    assert (difference.n, difference.mean) == (n, pytest.approx((first - second).mean()))
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert difference.p == pytest.approx(reference.pvalue)


def test_only_common_seeds_count():
    found = paired_difference({1: 0.8, 2: 0.9, 3: 0.1}, {2: 0.7, 1: 0.7, 9: 0.0})
    assert (found.n, found.mean) == (2, pytest.approx(0.15))
    assert paired_difference({1: 0.8}, {2: 0.7}) == Difference(n=0)


def test_one_value_has_no_interval_and_one_pair_no_test():
    assert (estimate([0.5]).mean, estimate([0.5]).sd, estimate([0.5]).low) == (0.5, None, None)
    found = paired_difference({1: 0.9}, {1: 0.5})
    assert (found.mean, found.low, found.p, found.is_distinguishable) == (pytest.approx(0.4), None, None, False)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_the_same_difference_on_every_seed_is_no_proof(shift):
    found = paired_difference({1: 0.5 + shift, 2: 0.7 + shift, 3: 0.1 + shift}, {1: 0.5, 2: 0.7, 3: 0.1})
    assert (found.mean, found.p, found.is_distinguishable) == (pytest.approx(shift), None, False)


def test_holms_correction_by_hand():
    found = holm({label: Difference(n=3, p=p) for label, p in {"a": 0.04, "b": 0.01, "c": 0.03, "d": None}.items()})
    corrected = {label: each.p_holm for label, each in found.items()}
    assert corrected == {"b": pytest.approx(0.03), "c": pytest.approx(0.06), "a": pytest.approx(0.06), "d": None}
    assert [label for label, each in found.items() if each.is_distinguishable] == ["b"]
    assert holm({"a": Difference(n=2, p=0.9), "b": Difference(n=2, p=0.8)})["b"].p_holm == 1.0


def test_the_error_of_one_accuracy_by_hand():
    assert binomial_error(0.8, 400) == pytest.approx(0.02)


def test_sameness_within_a_margin_is_the_larger_of_two_one_sided_tests():
    first, second = {1: 0.802, 2: 0.811, 3: 0.795, 4: 0.808}, {1: 0.800, 2: 0.812, 3: 0.797, 4: 0.806}
    found = paired_difference(first, second, 0.01)
    differences = [first[seed] - second[seed] for seed in first]
    error = np.std(differences, ddof=1) / math.sqrt(4)
    sides = [
        stats.t.sf((np.mean(differences) + 0.01) / error, 3),
        stats.t.cdf((np.mean(differences) - 0.01) / error, 3),
    ]
    assert found.p_same == pytest.approx(max(sides))
    assert holm({"a": found})["a"].is_same
    assert not holm({"a": paired_difference(first, second, 0.001)})["a"].is_same
    many = holm({str(index): found for index in range(30)})
    assert many["0"].p_same_holm == pytest.approx(min(1, 30 * found.p_same))
    assert paired_difference(first, second).p_same is None
    assert not paired_difference({1: 0.8}, {1: 0.8}, 0.1).is_same, "one seed shows no noise"
