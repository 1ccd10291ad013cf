import pytest

from fedpft.config import ConfigError
from fedpft.report.compare.groups import group_runs, require_comparable, short_key, short_value
from fedpft.report.compare.runs import read_runs
from tests.run_folders import run_folder


def runs_of(folder, *settings, **result):
    """Return a run for each tuple of overrides."""
    for index, overrides in enumerate(settings):
        run_folder(folder / f"{index:02}", *overrides, **result)
    return read_runs([folder])[0]


def test_runs_that_differ_in_the_seed_or_in_what_no_number_depends_on_are_one_group(tmp_path):
    run_folder(tmp_path / "a", "name=first", "pool.actors=1", seed=2, fm=0.7)
    run_folder(tmp_path / "b", "name=second", "tracking.wandb=disabled", seed=1, fm=0.6)
    (group,) = group_runs(read_runs([tmp_path])[0])
    assert group.values == {1: 0.6, 2: 0.7}
    assert [run.seed for run in group.runs] == [1, 2]
    assert group.label == "fedpft", "a single group has its method's name"


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([["method.name=full"], ["method.name=fedot", "method.kept_layers=7"]], ["full", "fedot"]),
        ([["lora.rank=4"], ["lora.rank=8"]], ["rank=4", "rank=8"]),
        ([["lora.rank=4", "federated.lr=1"], ["lora.rank=8", "federated.lr=2"]], ["rank=4", "rank=8"]),
        (
            [[f"lora.rank={rank}", f"federated.lr={lr}"] for rank, lr in ((4, 1), (8, 1), (4, 2))],
            ["rank=4, federated.lr=1.0", "rank=8, federated.lr=1.0", "rank=4, federated.lr=2.0"],
        ),
        (
            [["method.name=full"], ["method.retained_ratio=0.5"], ["method.retained_ratio=0.25"]],
            ["full", "fedpft, retained_ratio=0.5", "fedpft, retained_ratio=0.25"],
        ),
        ([["fm.path=/a/bert"], ["fm.path=/b/roberta"]], ["fm.path=bert", "fm.path=roberta"]),
        ([["fm.path=/a/bert"], ["fm.path=/b/bert"]], ['fm.path="/a/bert"', 'fm.path="/b/bert"']),
    ],
)
def test_a_label_has_only_what_tells_its_group_apart(tmp_path, settings, labels):
    assert [group.label for group in group_runs(runs_of(tmp_path, *settings))] == labels


def test_keys_are_as_short_as_no_other_setting_ends_in():
    assert short_key("method.retained_ratio") == "retained_ratio"
    assert short_key("align.layers.kind") == "layers.kind"
    assert short_key("method.name") == "method.name"
    assert (short_value('"a/b"'), short_value("null"), short_value("0.5"), short_value(None)) == (
        "b", "not set", "0.5", "not set",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "result", "key"),
    [
        ([], {"metric": "macro_f1"}, "metric"),
        (["task.name=qnli"], {}, "task.name"),
        (["task.eval_split=test"], {}, "task.eval_split"),
        (["task.max_eval_examples=50"], {}, "task.max_eval_examples"),
        ([], {"num_eval_examples": 399}, "evaluation examples"),
        (["federated.rounds=3"], {"rounds": 3}, "rounds"),
        (["task.max_train_examples=9"], {}, "task.max_train_examples"),
    ],
)
def test_runs_that_measure_something_else_are_refused_with_the_reason(tmp_path, overrides, result, key):
    run_folder(tmp_path / "a")
    run_folder(tmp_path / "b", *overrides, seed=2, **result)
    runs, _ = read_runs([tmp_path])
    with pytest.raises(ConfigError) as error:
        require_comparable(runs)
    assert str(error.value).startswith(f"not comparable, {key}: found ")
    assert f"{tmp_path / 'b'}; allowed: the same in all runs" in str(error.value)
    if key in ("rounds", "task.max_train_examples"):
        require_comparable(runs, [key])


def test_runs_that_stopped_early_are_compared_by_the_rounds_that_were_planned(tmp_path):
    run_folder(tmp_path / "a")
    run_folder(tmp_path / "b", seed=2, rounds=1, stopped={"planned_rounds": 2})
    run_folder(tmp_path / "c", seed=3, rounds=2, stopped={"planned_rounds": 4})
    runs, _ = read_runs([tmp_path])
    require_comparable(runs[:2])
    with pytest.raises(ConfigError, match=r"not comparable, rounds: found 2 in .*, 4 in"):
        require_comparable(runs)


def test_only_some_differences_can_be_allowed(tmp_path):
    with pytest.raises(
        ConfigError, match=r"--allow-different: found metric, allowed: rounds, task\.max_train_examples"
    ):
        require_comparable(runs_of(tmp_path, []), ["metric"])
