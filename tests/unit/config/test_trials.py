"""A sweep's space: laws, draws, names, and what is refused before anything starts."""

import json
from dataclasses import replace
from math import log

import pytest

from fedpft.config import ConfigError, load_config
from fedpft.config.sweep import SweepConfig, as_overrides, load_sweep
from fedpft.config.trials import Trial, make_trial, planned_trials, trial_name

RATIO = "method.retained_ratio"


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 5\nfederated: {rounds: 3}\ntracking: {tags: [mine]}\n")
    (tmp_path / "method").mkdir()
    (tmp_path / "method/half.yaml").write_text("method: {retained_ratio: 0.5}\n")
    (tmp_path / "method/whole.yaml").write_text("method: {name: full}\n")
    return str(tmp_path / "base.yaml")


def names(sweep):
    return [trial.name for trial in planned_trials(sweep)]


def refused(action, *arguments, **settings):
    with pytest.raises(ConfigError) as error:
        action(*arguments, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_grid_is_every_point_with_every_seed(base):
    sweep = SweepConfig(base=base, space={RATIO: {"grid": [0.25, 0.5]}, "lora.rank": {"grid": [2, 4]}}, seeds=(1, 2))
    trials = planned_trials(sweep)
    found = {(t.config.method.retained_ratio, t.config.lora.rank, t.config.seed) for t in trials}
    assert found == {(ratio, rank, seed) for ratio in (0.25, 0.5) for rank in (2, 4) for seed in (1, 2)}
    assert len(trials) == 8
    assert trials[0].name == "retained_ratio-0.25_rank-2_seed-1"


def test_a_trial_says_all_that_a_plain_run_needs_for_the_same_bits(base, tmp_path):
    sweep = SweepConfig(name="s", base=base, run={"federated": {"rounds": 2}, "lora.rank": 3}, output_dir=str(tmp_path))
    (trial,) = planned_trials(sweep)
    config = trial.config
    assert (config.seed, config.federated.rounds, config.lora.rank, config.server.num_threads) == (5, 2, 3, 1)
    assert config.output_dir == str(tmp_path / "trials/base")
    assert (config.tracking.group, config.tracking.job_type) == ("s", "trial")
    assert config.tracking.tags == ("mine", "sweep", "s")
    assert planned_trials(replace(sweep, driver_cpus=2.5))[0].config.server.num_threads == 2


@pytest.mark.parametrize("metric", ["fm", "leakage_gap", "metrics.sub_fm.macro_f1", "metrics.fm.mismatched/accuracy"])
def test_a_number_of_an_evaluation_ranks_trials(base, metric):
    assert planned_trials(SweepConfig(base=base, metric=metric))


@pytest.mark.parametrize(
    ("metric", "allowed"),
    [("accuracy", "fm, fm_copied, sub_fm"), ("metrics.fm.f3", "metrics.MODEL.accuracy|"), ("adapter", "fm, fm_copied")],
)
def test_a_metric_that_no_record_has_is_refused_before_any_trial(base, metric, allowed):
    message = refused(planned_trials, SweepConfig(base=base, metric=metric))
    assert message.startswith(f"metric: found {metric!r}, allowed: {allowed}")


def test_a_trial_comes_back_from_its_text(base):
    space = {
        RATIO: {"grid": [1e-5]},
        "fm.config.note": {"grid": ["ü: {}"]},
        "method.uncompressed_layers": {"grid": [[0, -1]]},
    }
    (trial,) = planned_trials(SweepConfig(base=base, space=space))
    assert trial.config.fm.config == {"note": "ü: {}"}
    assert Trial.from_json(trial.to_json()) == trial


def test_words_of_parts_are_values(base):
    trials = planned_trials(SweepConfig(base=base, space={"method": {"grid": ["half", "whole"]}}))
    assert [(t.config.method.name, t.config.method.retained_ratio) for t in trials] == [("fedpft", 0.5), ("full", 0.25)]
    assert [t.name for t in trials] == ["method-half", "method-whole"]


def test_draws_depend_on_the_search_seed_alone_keep_to_their_ranges_and_are_the_same_for_all_seeds(base):
    space = {
        "federated.lr": {"loguniform": [1e-4, 1e-2]},
        "lora.rank": {"randint": [2, 4]},
        "lora.dropout": {"uniform": [0.1, 0.2]},
        "method.scorer": {"choice": ["random", "weight_norm"]},
        RATIO: {"grid": [0.25, 0.5]},
    }
    sweep = SweepConfig(base=base, space=space, search="random", num_samples=16, seeds=(1, 2))
    trials = planned_trials(sweep)
    assert len(trials) == 16 * 2 * 2
    assert trials == planned_trials(sweep)
    assert trials[:4] != planned_trials(replace(sweep, search_seed=1, num_samples=1))
    for first, second, third, fourth in zip(*[iter(trials)] * 4, strict=True):
        assert {first.config.federated.lr} == {t.config.federated.lr for t in (second, third, fourth)}
    rates = [trial.config.federated.lr for trial in trials]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert sum(map(log, rates)) / len(rates) == pytest.approx(log(1e-3), abs=0.6)  # uniform would be at 5e-3
    assert {trial.config.lora.rank for trial in trials} == {2, 3, 4}
    assert {trial.config.method.scorer for trial in trials} == {"random", "weight_norm"}


def test_a_sample_more_changes_no_earlier_one(base):
    sweep = SweepConfig(base=base, space={"lora.rank": {"randint": [1, 999]}}, search="random", num_samples=3)
    assert names(replace(sweep, num_samples=4))[:3] == names(sweep)


def test_names_are_short_unique_and_fit_a_folder():
    assert trial_name({}, None) == "base"
    assert (
        trial_name({"federated.lr": 1e-3, "align.layers.lr": 2e-5}, 3)
        == "federated.lr-0.001_align.layers.lr-2e-05_seed-3"
    )
    assert trial_name({"task.path": "a/b c"}, None) == "task-a-b-c"
    assert trial_name({"method.name": "full", "align.neurons.kind": "none"}, None) == "method-full_neurons-none"
    long = {f"fm.config.{'k' * 30}{number}": number for number in range(4)}
    assert len(trial_name(long, 1)) == 80
    assert trial_name(long, 1) != trial_name(long, 2)


def test_a_config_that_cannot_work_is_refused_with_key_and_trial(base):
    message = refused(planned_trials, SweepConfig(base=base, space={RATIO: {"grid": [0.5, 1.5]}}))
    assert message == "trial retained_ratio-1.5: method.retained_ratio: found 1.5, allowed: a fraction in (0, 1]"
    message = refused(planned_trials, SweepConfig(base=base, space={"method.retained_ration": {"grid": [0.5]}}))
    assert "did you mean method.retained_ratio?" in message
    for law in ({"uniform": [0.5, 1.5]}, {"choice": [0.5, 0.1, 2]}):
        sweep = SweepConfig(base=base, space={RATIO: law, "lora.rank": {"randint": [1, 2]}}, search="optuna")
        assert "method.retained_ratio: found" in refused(planned_trials, sweep)
    assert "checkpoint.interval: found 0" in refused(
        planned_trials, SweepConfig(base=base, run={"checkpoint.interval": 0})
    )
    assert "not found" in refused(planned_trials, SweepConfig(base="nowhere.yaml"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": {RATIO: [0.5]}}, "space.method.retained_ratio: found [0.5], allowed: one law of grid, choice,"),
        ({"space": {RATIO: {"grid": []}}}, "space.method.retained_ratio.grid: found [], allowed: a list of values"),
        ({"space": {RATIO: {"grid": 1}}}, "space.method.retained_ratio.grid: found 1, allowed: a list"),
        ({"space": {RATIO: {"grid": [1, 1]}}}, "allowed: values that differ"),
        ({"space": {RATIO: {"uniform": [0, 1]}}}, "found 'uniform', allowed: grid with search = grid"),
        ({"space": {RATIO: {"grid": [1]}}, "search": "optuna"}, "allowed: choice, uniform, loguniform, randint with"),
        ({"space": {RATIO: {"uniform": [1, 0]}}, "search": "random"}, "allowed: two numbers [low, high]"),
        ({"space": {RATIO: {"loguniform": [0, 1]}}, "search": "random"}, "allowed: two numbers [low, high] > 0"),
        ({"space": {RATIO: {"randint": [0.5, 1]}}, "search": "random"}, "allowed: two integers [low, high]"),
        ({"space": {"seed": {"grid": [1]}}}, "seeds are listed in `seeds`"),
        ({"seeds": (1, 1)}, "seeds: found [1, 1], allowed: seeds that differ"),
        ({"search": "optuna"}, "keys and laws with search = optuna"),
        ({"max_concurrent": 0}, "max_concurrent: found 0, allowed: null or an integer > 0"),
        ({"scheduler": "hyperband", "max_concurrent": 2}, "max_concurrent: found 2, allowed: null with scheduler = "),
        ({"driver_cpus": 0.0}, "driver_cpus: found 0.0, allowed: a number > 0"),
        ({"max_retries": -1}, "max_retries: found -1, allowed: a number >= 0"),
        ({"max_retries": 2**62}, f"max_retries: found {2**62}, allowed: at most 1000000"),
        ({"num_samples": 2**62}, f"num_samples: found {2**62}, allowed: at most 1000000"),
        (
            {"space": {RATIO: {"uniform": [0.1, 1]}}, "search": "optuna", "scheduler": "asha", "seeds": (1, 2)},
            "scheduler: found 'asha', allowed: none with search = optuna and several seeds",
        ),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_work_is_refused(settings, message):
    assert message in refused(SweepConfig, base="base.yaml", **settings)


def test_a_file_names_its_base_from_its_own_folder_and_overrides_win(base, tmp_path):
    (tmp_path / "sweeps").mkdir()
    file = tmp_path / "sweeps/s.yaml"
    file.write_text("name: s\nbase: ../base.yaml\nrun: {federated: {rounds: 9, lr: 1e-3}}\nseeds: [1]\n")
    sweep = load_sweep(file, ["run.federated.rounds=2", "seeds=[7]"])
    (trial,) = planned_trials(sweep)
    assert (trial.config.federated.rounds, trial.config.federated.lr, trial.config.seed) == (2, 1e-3, 7)
    assert sweep.output_dir == "outputs/sweeps/s"
    assert f"{file}: sampels: unknown key; allowed: name, base" in refused(load_sweep, file, ["sampels=3"])
    assert "search" in refused(load_sweep, file, ["search=guess"])
    assert "max_concurrent" in refused(load_sweep, file, ["max_concurrent=0"])


def test_a_space_on_the_command_line_replaces_the_files(base, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("base: base.yaml\nspace: {lora.rank: {grid: [1, 2]}, federated.lr: {grid: [0.1]}}\n")
    sweep = load_sweep(file, ["space={lora.rank: {choice: [3, 4]}}", "search=random"])
    assert [(each.key, each.law, each.values) for each in sweep.dimensions] == [("lora.rank", "choice", (3, 4))]


def test_nested_settings_are_overrides_that_say_the_same():
    settings = {"federated": {"lr": 1e-5, "rounds": 3}, "method.uncompressed_layers": [0, -1], "fm": {"config": {}}}
    assert as_overrides(settings)[1:3] == ["federated.rounds=3", "method.uncompressed_layers=[0, -1]"]
    config = load_config(None, as_overrides(settings))
    assert (config.federated.lr, config.method.uncompressed_layers, config.fm.config) == (1e-5, (0, -1), {})


def test_a_name_may_be_given(base):
    trial = make_trial(SweepConfig(base=base), {RATIO: 0.5}, 1, "007_x")
    assert (trial.name, json.loads(trial.to_json())["name"]) == ("007_x", "007_x")
    assert trial.config.output_dir.endswith("/trials/007_x")
