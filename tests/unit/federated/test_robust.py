"""Robust rules: others' numbers, what bad updates can do, and sums that are done in blocks."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedpft.config import AggregatorConfig
from fedpft.config.algorithms import AGGREGATORS
from fedpft.federated.aggregators import robust
from fedpft.federated.aggregators.table import MAKERS, make_aggregator

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/server_rules.json").read_text())
ROBUST = [kind for kind in AGGREGATORS if kind not in ("mean", "h_ties")]


def aggregate(config, updates, memory=None, start=None):
    """Return the update, float64, that the aggregate of start + updates is; and what is remembered."""
    start = np.zeros(updates.shape[1], np.float32) if start is None else start
    rule = make_aggregator(config)
    state = rule.init(start, len(updates) + 2, memory or {})
    for update in updates:
        state = rule.add(state, start + update.astype(np.float32), 1.0)
    adapter, memory = rule.finish(state)
    assert adapter.dtype == np.float32
    return adapter.astype(np.float64) - start, memory


SETTINGS = {
    ("byzfl", "multi_krum"): lambda n, f: {"num_selected": n - f - 1},  # its Krum has one neighbour more
    ("byzfl", "geometric_median"): lambda n, f: {"smoothing": 0.1, "iterations": 8},
    ("byzfl", "norm_bound"): lambda n, f: {"norm": 0.7},
    ("byzfl", "centered_clipping"): lambda n, f: {"norm": 0.2, "iterations": 3},
}
"""Under which settings, besides `num_byzantine`, (library, rule) is the same as ours."""


@pytest.mark.parametrize("case", GOLDEN["robust"].values(), ids=GOLDEN["robust"].keys())
@pytest.mark.parametrize("library", ["byzfl", "flower"])
def test_every_rule_gives_what_others_code_gives(library, case):
    updates, f = np.array(case["updates"]), case["f"]
    for kind, expected in case[library].items():
        more = SETTINGS.get((library, kind), lambda n, f: {})(len(updates), f)
        config = AggregatorConfig(kind=kind, num_byzantine=f, **more)
        found, memory = aggregate(config, updates)
        if kind == "centered_clipping":
            again, _ = aggregate(config, updates[::-1] * 0.5, memory)
            found, expected = np.stack([found, again]), np.array(expected)
        assert np.abs(found - expected).max() < 2e-7, kind


def test_the_two_tables_of_rules_have_the_same():
    assert MAKERS.keys() == AGGREGATORS.keys()


@pytest.mark.parametrize("kind", ROBUST)
def test_equal_updates_give_themselves(kind):
    update = np.random.default_rng(0).normal(size=50) * 0.1
    config = AggregatorConfig(kind=kind, num_byzantine=1)
    found, _ = aggregate(config, np.tile(update, (7, 1)))
    assert found == pytest.approx(update, abs=1e-7)


@pytest.mark.parametrize("kind", ROBUST)
@pytest.mark.parametrize("far", [10.0, 1e4])
def test_bad_updates_however_far_leave_the_result_near_the_good_ones(kind, far):
    rng = np.random.default_rng(1)
    good = rng.normal(0.1, 0.02, (9, 40))
    bad = np.full((2, 40), far)
    config = AggregatorConfig(kind=kind, num_byzantine=2, norm=0.2, iterations=20)
    found, _ = aggregate(config, rng.permutation(np.concatenate([good, bad])))
    mean, _ = aggregate(AggregatorConfig(), np.concatenate([good, bad]))
    assert np.linalg.norm(found - good.mean(axis=0)) < 0.6
    assert np.linalg.norm(mean - good.mean(axis=0)) > 5


@pytest.mark.parametrize("kind", ROBUST)
def test_without_bad_clients_in_mind_each_rule_is_the_mean_where_it_should_be(kind):
    updates = np.random.default_rng(2).normal(size=(6, 30)) * 0.01
    config = AggregatorConfig(kind=kind, norm=10.0, num_selected=6 if kind == "multi_krum" else None, iterations=1)
    found, _ = aggregate(config, updates)
    if kind in ("trimmed_mean", "multi_krum", "bulyan", "norm_bound", "centered_clipping"):
        assert found == pytest.approx(updates.mean(axis=0), abs=1e-8)


@pytest.mark.parametrize("kind", [kind for kind in ROBUST if kind != "bulyan"])
@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_clients_does_not_matter(kind, seed):
    """Up to the last bits of a sum.

    Bulyan's last choices go by one neighbour: two that are nearest to each other have equal scores, and the first in
    the order is taken, as in Flower. The cohort fixes the order.
    """
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(11, 5))
    config = AggregatorConfig(kind=kind, num_byzantine=2)
    expected, _ = aggregate(config, updates)
    assert aggregate(config, rng.permutation(updates))[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ROBUST)
def test_blocks_of_columns_change_nothing(kind, monkeypatch):
    updates = np.random.default_rng(3).normal(size=(11, 101))
    config = AggregatorConfig(kind=kind, num_byzantine=2)
    whole, _ = aggregate(config, updates)
    monkeypatch.setattr(robust, "BLOCK_BYTES", 8 * 11 * 7)
    assert aggregate(config, updates)[0] == pytest.approx(whole, abs=1e-7)


@pytest.mark.parametrize("kind", ROBUST)
def test_a_rule_leaves_updates_and_memory_as_they_are(kind):
    updates = np.random.default_rng(4).normal(size=(7, 10)).astype(np.float32)
    memory = {"centre": np.ones(10)}
    before = updates.copy()
    aggregate(AggregatorConfig(kind=kind, num_byzantine=1), updates, memory)
    assert np.array_equal(updates, before)
    assert np.array_equal(memory["centre"], np.ones(10))


def test_the_geometric_median_has_the_least_sum_of_distances():
    updates = np.random.default_rng(5).normal(size=(9, 4))

    def total(point):
        return np.linalg.norm(updates - point, axis=1).sum()

    found = robust.geometric_median(updates, iterations=300, smoothing=1e-9)
    nearby = found + 1e-3 * np.random.default_rng(6).normal(size=(50, 4))
    assert total(found) <= min(total(point) for point in nearby)


def test_distances_are_those_of_differences():
    updates = (100 + np.random.default_rng(7).normal(size=(6, 30))).astype(np.float32)
    expected = ((updates[:, None].astype(np.float64) - updates) ** 2).sum(axis=2)
    assert robust.square_distances(updates) == pytest.approx(expected, rel=1e-8, abs=1e-8)
