import json
from math import sqrt

import pytest

from fedpft.config import ConfigError
from fedpft.report.compare.comparison import compare
from fedpft.report.compare.record import comparison_json
from tests.run_folders import run_folder, sweep_folder

HALF, QUARTER, FEDOT = "fedpft, retained_ratio=0.5", "fedpft, retained_ratio=0.25", "fedot"


def two_groups(folder, first, second, **result):
    """Return the comparison of LoRA ranks 4 (baseline) and 8, with these metrics by seed."""
    for rank, values in ((4, first), (8, second)):
        for seed, fm in enumerate(values):
            run_folder(folder / f"{rank}_{seed}", f"lora.rank={rank}", seed=seed, fm=fm, **result)
    return compare([folder])


def test_groups_are_sorted_and_judged_against_the_first(tmp_path):
    found = compare([sweep_folder(tmp_path)])
    assert [group.label for group in found.groups] == [HALF, FEDOT, QUARTER]
    assert found.baseline == HALF
    assert found.differences.keys() == {QUARTER, FEDOT}
    assert found.differences[FEDOT].n == 2
    assert found.verdict(QUARTER).startswith(f"{QUARTER} loses to {HALF} by 9.8 points (95 % 9.6 to 10.0, n = 3 seeds")
    assert found.verdict(FEDOT).startswith(f"{FEDOT} is not distinguishable from {HALF} (n = 2 seeds; -2.0 points")


def test_differences_by_hand(tmp_path):
    found = two_groups(tmp_path, [0.70, 0.72, 0.74], [0.80, 0.80, 0.86])
    difference = found.differences["rank=8"]
    half = 4.302653 * 0.02 / sqrt(3)
    assert difference.mean == pytest.approx(0.1)
    assert (difference.low, difference.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)
    assert found.verdict("rank=8").startswith(
        "rank=8 beats rank=4 by 10.0 points (95 % 5.0 to 15.0, n = 3 seeds, Holm's p = 0.0"
    )


def test_less_is_better_for_an_error(tmp_path):
    found = two_groups(tmp_path, [2.0, 2.1, 2.2], [1.0, 1.2, 1.1], metric="mse", metric_goal="min")
    assert [group.label for group in found.groups] == ["rank=8", "rank=4"]
    assert found.verdict("rank=8").startswith("rank=8 beats rank=4 by 1.000 (95 % 0.752 to 1.248, n = 3 seeds")


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([0.5], [0.9], "(n = 1; +40.0 points, one seed shows no noise)"),
        ([0.5, 0.6], [0.6, 0.7], "(n = 2; +10.0 points, the same on every seed, which shows no noise)"),
        ([0.5, 0.6], [0.5, 0.6], "(n = 2; +0.0 points, the same on every seed, which shows no noise)"),
        ([0.5, 0.7], [0.8, 0.6], "(n = 2 seeds; +10.0 points, 95 % -244.1 to 264.1, Holm's p = 0.7)"),
    ],
)
def test_too_little_to_tell_is_said_in_words(tmp_path, first, second, said):
    found = two_groups(tmp_path, first, second)
    assert found.verdict("rank=8") == f"rank=8 is not distinguishable from rank=4 {said}"


def test_without_a_common_seed_there_is_no_verdict(tmp_path):
    run_folder(tmp_path / "a", "lora.rank=4", seed=1)
    run_folder(tmp_path / "b", "lora.rank=8", seed=2)
    assert compare([tmp_path]).verdict("rank=8").endswith("(no common seed)")


def test_one_seed_has_the_error_of_the_evaluation_sets_size(tmp_path):
    run_folder(tmp_path / "a", fm=0.8)
    found = compare([tmp_path])
    assert found.score("fedpft") == "80.0 % (one seed; ± 2.0 points by the evaluation set's size)"
    run_folder(tmp_path / "b", seed=2, fm=0.8)
    assert compare([tmp_path]).error_of_one_run("fedpft") is None


def test_an_interval_of_a_fraction_ends_where_fractions_do_and_no_other_does(tmp_path):
    assert two_groups(tmp_path / "a", [0.5, 0.7], [0.8, 0.8]).score("rank=4") == "60.0 % [0.0 to 100.0]"
    assert two_groups(tmp_path / "b", [0.5, 0.7], [0.8, 0.8], metric="mse").score("rank=4") == "0.600 [-0.671 to 1.871]"


def test_the_baseline_is_a_label_or_a_runs_folder(tmp_path):
    folder = sweep_folder(tmp_path)
    assert compare([folder], FEDOT).baseline == FEDOT
    assert compare([folder], str(folder / "quarter_2")).baseline == QUARTER
    with pytest.raises(ConfigError, match=r"--baseline: found 'fedpft', allowed: the folder of a run, or .*; fedot"):
        compare([folder], "fedpft")


def test_the_json_has_the_same_numbers_and_only_the_settings_that_differ(tmp_path):
    found = compare([sweep_folder(tmp_path)])
    content = json.loads(json.dumps(comparison_json(found)))
    first = content["groups"][0]
    assert (first["label"], first["n"], first["mean"]) == (HALF, 3, pytest.approx(0.81))
    assert first["difference"] is None
    assert [run["seed"] for run in first["runs"]] == [1, 2, 3]
    assert content["groups"][2]["difference"]["p_holm"] == found.differences[QUARTER].p_holm
    assert content["pareto"]["bytes"] == [QUARTER, HALF]
    assert content["settings"] == {
        "method.name": {HALF: "fedpft", FEDOT: "fedot", QUARTER: "fedpft"},
        "method.retained_ratio": {HALF: "0.5", FEDOT: "0.25", QUARTER: "0.25"},
    }


def test_a_verdict_tells_the_same_from_the_unknown(tmp_path):
    for seed, noise in ((1, 0.000), (2, 0.002), (3, -0.001), (4, 0.001)):
        run_folder(tmp_path / f"a{seed}", seed=seed, fm=0.8 + 3 * noise)
        run_folder(tmp_path / f"b{seed}", "lora.rank=3", seed=seed, fm=0.8 + 2 * noise)
    label = "rank=3"
    (wide, narrow, plain) = (compare([tmp_path], same_within=margin) for margin in (1.0, 0.1, None))
    assert (wide.standing(label), narrow.standing(label)) == ("the same", "not distinguishable")
    assert wide.verdict(label).startswith(
        "rank=3 is not distinguishable from rank=8, and the same within 1.0 points (TOST"
    )
    assert "but not shown to be the same within 0.1 points" in narrow.verdict(label)
    assert "same" not in plain.verdict(label)
    assert comparison_json(wide)["same_within"] == pytest.approx(0.01)
    for bad in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"--same-within: found .*, allowed: a number > 0"):
            compare([tmp_path / "a1"], same_within=bad)
