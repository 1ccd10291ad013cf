import itertools
import json
import sys

import numpy as np
import pytest

from fedpft.report.compare import effects as module_under_test
from fedpft.report.compare.comparison import compare
from fedpft.report.compare.effects import MIN_POINTS, effect_figure, effects_of, seed_share, setting_effects
from fedpft.report.compare.page import compare_page
from fedpft.report.compare.record import comparison_json
from tests.run_folders import run_folder

pytest.importorskip("optuna")
pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(module_under_test, "NUM_DRAWS", 5)
    monkeypatch.setattr(module_under_test, "NUM_TREES", 8)
    effects_of.cache_clear()
    yield
    effects_of.cache_clear()


def grid(value, size=5, seeds=1):
    """Return the effects of a grid of a, b = 0, 1, ...; `value(a, b)` is a run's metric, called for every seed."""
    places = itertools.product(range(size), repeat=2)
    points = tuple(((json.dumps(a), json.dumps(b)), tuple(value(a, b) for _ in range(seeds))) for a, b in places)
    return {effect.key: effect for effect in effects_of(("a", "b"), points)}


def test_the_setting_that_the_metric_follows_explains_nearly_all_of_it():
    found = grid(lambda a, b: 0.5 + 0.05 * a)
    assert list(found) == ["a", "b"], "the largest first"
    assert found["a"].share > 0.95
    assert found["b"].share < 0.05
    assert found["a"].low <= found["a"].share <= found["a"].high
    assert found["a"].is_found
    assert not found["b"].is_found


def test_shares_are_those_of_the_variance_by_hand():
    found = grid(lambda a, b: 2 * a + b)
    assert found["a"].share == pytest.approx(0.8, abs=0.08)
    assert found["b"].share == pytest.approx(0.2, abs=0.08)


@pytest.mark.parametrize("size", [3, 5])
def test_an_interaction_of_two_settings_is_no_effect_of_either(size):
    middle = (size - 1) / 2
    assert not any(effect.is_found for effect in grid(lambda a, b: (a - middle) * (b - middle), size).values())


def test_noise_between_seeds_is_no_effect_and_has_wide_intervals():
    rng = np.random.default_rng(1)
    found = grid(lambda a, b: rng.normal(), seeds=3)
    assert not any(effect.is_found for effect in found.values())
    assert max(effect.high - effect.low for effect in found.values()) > 0.1


def sweep(folder, seeds=(1, 2)):
    """Return the comparison of a sweep of a number and a word, of which the word matters."""
    for rank, scorer, seed in itertools.product((2, 4, 8, 16, 32), ("random", "weight_norm"), seeds):
        fm = 0.9 if scorer == "random" else 0.5
        overrides = [f"lora.rank={rank}", f"method.scorer={scorer}"]
        run_folder(folder / f"{rank}_{scorer}_{seed}", *overrides, seed=seed, fm=fm + seed / 1000)
    return compare([folder])


def test_page_and_json_of_a_sweep_of_words_and_numbers_have_the_effects(tmp_path):
    comparison = sweep(tmp_path)
    assert "Effect of each setting" in compare_page(comparison)
    first, second = comparison_json(comparison)["effects"]
    assert (first["key"], second["key"]) == ("method.scorer", "lora.rank")
    assert first["share"] > first["chance"]
    figure = effect_figure(comparison.effects)
    assert {trace.name: trace.y for trace in figure.data} == dict.fromkeys(
        ("by chance up to", "share of variance"), ("rank", "scorer")
    )
    assert seed_share(comparison.groups) == pytest.approx(0.0005**2 / (0.0005**2 + 0.2**2))


def test_without_two_settings_that_differ_or_enough_points_there_is_nothing(tmp_path):
    groups = sweep(tmp_path, seeds=(1,)).groups
    assert setting_effects(groups[: MIN_POINTS - 1]) == []
    assert setting_effects([group for group in groups if "random" in group.label] * 2) == []


def test_without_scikit_learn_the_page_says_what_to_install(tmp_path, monkeypatch):
    comparison = sweep(tmp_path, seeds=(1,))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert comparison.effects is None
    assert "pip install &#x27;fedpft[sweep]&#x27;" in compare_page(comparison)
