import json

import pytest

from fedpft.report.compare.costs import AXES, group_costs, pareto_front
from fedpft.report.compare.groups import group_runs
from fedpft.report.compare.runs import read_runs
from tests.run_folders import run_folder

POINTS = {"cheap": (1, 0.5), "good": (3, 0.9), "beaten": (3, 0.8), "dear": (4, 0.9), "middle": (2, 0.7)}


def front(points, *goals):
    prices = {label: price for label, (price, _) in points.items()}
    return pareto_front(prices, {label: score for label, (_, score) in points.items()}, goals)


def test_the_front_holds_what_nothing_beats_the_cheapest_first():
    assert front(POINTS, "min", "max") == ["cheap", "middle", "good"]


def test_both_directions_can_be_turned():
    assert front(POINTS, "max", "max") == ["dear"]
    assert front(POINTS, "min", "min") == ["cheap"]


def test_equal_points_are_both_on_the_front():
    assert front({"a": (1, 0.5), "b": (1, 0.5)}, "min", "max") == ["a", "b"]


def costs_of(folder, **result):
    for seed in (1, 2):
        run_folder(folder / str(seed), seed=seed, **result)
    (group,) = group_runs(read_runs([folder])[0])
    return group_costs(group)


def test_prices_are_means_over_seeds_of_what_runs_measured(tmp_path):
    run_folder(tmp_path / "3", seed=3, bytes_up_total=6000)
    assert costs_of(tmp_path) == {
        "bytes": pytest.approx(9000),
        "client_flops": 2_000_000,
        "client_memory": 70_000,
        "proxy_params": 1_000_000,
        "align_seconds": 3.5,
        "leakage_gap": pytest.approx(0.1),
    }


def test_an_axis_that_a_run_did_not_measure_is_not_offered(tmp_path):
    run_folder(tmp_path / "3", seed=3, construction={"cached": True, "seconds": 0.1})
    assert costs_of(tmp_path, client_flops_per_round=None, sub_fm=None).keys() == {
        "bytes", "client_memory", "proxy_params",
    }  # fmt: skip


def test_the_leakage_gap_is_positive_where_the_fm_is_better_whatever_the_metric():
    gap = AXES["leakage_gap"].of
    assert gap({"fm": 0.9, "sub_fm": 0.8, "metric_goal": "max"}) == pytest.approx(0.1)
    assert gap({"fm": 0.2, "sub_fm": 0.5, "metric_goal": "min"}) == pytest.approx(0.3)


def test_epsilon_and_what_an_audit_found_are_prices_of_runs_that_have_them(tmp_path):
    for seed, epsilon in ((1, 2.0), (2, 3.0)):
        skill = {"agreement": 0.5 + seed / 10, "hidden": 0.3, "loss": 0.25}
        folder = run_folder(tmp_path / str(seed), seed=seed, privacy={"epsilon": epsilon}, skill=skill)
        attacks = {"untuned_fm": {"auc": 0.9}, "fm": {"auc": 0.6}, "sub_fm": {"auc": 0.5 + seed / 10}}
        (folder / "audit.json").write_text(json.dumps({"membership": attacks, "skill": {"probe": 0.7}}))
    (group,) = group_runs(read_runs([tmp_path])[0])
    found = group_costs(group)
    assert found["epsilon"] == 2.5
    assert found["membership"] == pytest.approx(0.65)
    assert found["shared_skill"] == 0.7
    assert (found["agreement"], found["shared_loss"]) == (pytest.approx(0.65), 0.25)
    assert [AXES[axis].shown(found[axis]) for axis in ("epsilon", "membership")] == ["2.5", "0.650"]


def test_epsilon_of_an_example_is_another_price_than_that_of_a_client(tmp_path):
    for unit in ("client", "example"):
        run_folder(tmp_path / unit / "1", seed=1, privacy={"epsilon": 2.0, "unit": unit})
    found = {unit: group_costs(group_runs(read_runs([tmp_path / unit])[0])[0]) for unit in ("client", "example")}
    assert {unit: [key for key in AXES if "epsilon" in key and key in costs] for unit, costs in found.items()} == {
        "client": ["epsilon"],
        "example": ["epsilon_of_example"],
    }
    assert AXES["epsilon"].title != AXES["epsilon_of_example"].title
