from math import sqrt

import pytest

from fedpft.report.compare.comparison import compare
from fedpft.report.compare.noise import detectable, noise_floor, noise_line
from fedpft.report.compare.page import compare_page
from fedpft.report.compare.record import comparison_json
from tests.run_folders import run_folder, sweep_folder


def test_variances_are_pooled_by_degrees_of_freedom():
    first, second = {1: 1.0, 2: 3.0}, {1: 5.0, 2: 6.0, 3: 7.0}  # variances 2 and 1
    found = noise_floor([first, second, {9: 100.0}], first)
    assert (found.sd, found.degrees, found.num_groups) == (pytest.approx(sqrt((1 * 2 + 2 * 1) / 3)), 3, 2)
    assert (found.paired_sd, found.paired_degrees) == (pytest.approx(sqrt(0.5)), 1), "4 and 3 on seeds 1 and 2"


@pytest.mark.parametrize(("n", "effect"), [(10, 0.9962), (20, 0.6604), (34, 0.4945)])
def test_the_difference_that_seeds_show_is_that_of_tables_of_power(n, effect):
    """R: power.t.test(n, sd = 1, power = 0.8, type = "one.sample")$delta, to its precision."""
    assert detectable(n) == pytest.approx(effect, abs=1e-3)


def test_simulated_pairs_are_found_as_often_as_is_said():
    import numpy as np
    from scipy.stats import ttest_1samp

    n = 5
    draws = np.random.default_rng(1).normal(loc=detectable(n), size=(20_000, n))
    assert (ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("groups", [[{1: 0.5}], [{1: 0.5, 2: 0.5}], [{1: 0.5}, {1: 0.7}]])
def test_without_two_seeds_that_differ_there_is_no_noise_to_tell(groups):
    assert noise_floor(groups, groups[0]) is None


def test_one_group_tells_of_pairs_as_if_they_were_independent():
    found = noise_floor([{1: 0.0, 2: 2.0}], {1: 0.0, 2: 2.0})
    assert found.paired_sd is None
    assert found.shows[10] == pytest.approx(detectable(10) * sqrt(2) * found.sd)


def test_page_terminal_and_json_tell_the_noise_of_finished_seeds(tmp_path):
    found = compare([sweep_folder(tmp_path)])
    assert found.noise is not None
    assert f"<p>{noise_line(found.noise, 'accuracy')}.</p>" in compare_page(found)
    noise = comparison_json(found)["noise"]
    assert noise["degrees"] == 2 + 2 + 1
    assert noise["shows"].keys() >= {2, 3, 5, 10}


def test_json_of_single_seeds_has_no_noise(tmp_path):
    run_folder(tmp_path / "a", seed=1)
    assert comparison_json(compare([tmp_path]))["noise"] is None
