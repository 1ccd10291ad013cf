"""Sweeps on 2 CPUs: bits, retries, early stops, pauses, and a driver that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from types import ModuleType, SimpleNamespace

import psutil
import pytest

import fedpft
from fedpft.config import ConfigError, dump_config, load_config
from fedpft.config.sweep import SweepConfig
from fedpft.config.trials import Trial, planned_trials
from fedpft.interrupt import NotCountedError
from fedpft.run.pipeline import run
from tests.tiny import tiny_text_run

engine = pytest.importorskip("fedpft.simulation.sweep", reason="Ray is not installed", exc_type=ImportError)
places = pytest.importorskip("fedpft.simulation.places")
sweeps = pytest.importorskip("fedpft.sweeps.sweep")


MAX_SECONDS = 300
"""After so long it hangs; alone it takes seconds."""


class Heard:
    """A watcher that remembers."""

    def __init__(self):
        self.started, self.reported, self.retried, self.ended = [], [], {}, {}

    def trial_started(self, name):
        self.started.append(name)

    def trial_reported(self, name, round_index, value):
        self.reported.append((name, round_index, value))

    def trial_retried(self, name, reason):
        self.retried[name] = reason

    def trial_ended(self, name, *, failed):
        self.ended[name] = failed


def tiny_base(folder, *overrides):
    config = load_config(None, [*tiny_text_run(folder), "evaluation.interval=2", *overrides])
    (folder / "base.yaml").write_text(dump_config(config))
    return str(folder / "base.yaml")


def fails_once(marker):
    """Return a way to play trials of which one dies in its second half, the first time."""

    def play(trial, report):
        def report_then_fail(round_index, value, score):
            report(round_index, value, score)
            if trial.name.endswith("-ray") and not marker.exists():
                marker.touch()
                raise RuntimeError("a cosmic ray")

        sweeps.play_trial("fm", None, trial, report_then_fail)

    return play


def numbers(folder):
    """Return what a run's rounds say, without times and memory."""
    measured = ("time/", "memory/", "clients/")
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds" and not key.startswith(measured)}
        for line in (folder / "rounds.jsonl").read_text().splitlines()
    ]


@pytest.mark.cluster
def test_trials_at_once_with_actors_and_one_that_fails_at_first_give_the_bits_of_plain_runs(local_ray, tmp_path):
    sweep = SweepConfig(
        base=tiny_base(tmp_path, "pool={actors: 1, cpus_per_actor: 0.5}"), output_dir=str(tmp_path / "sweep"),
        space={"pool.kind": {"grid": ["ray", "sequential"]}}, driver_cpus=0.5, max_concurrent=2,
    )  # fmt: skip
    trials, heard = planned_trials(sweep), Heard()
    ended = engine.run_trials(sweep, trials, fails_once(tmp_path / "failed"), heard)
    assert {trial.name: error for trial, error in ended} == {trial.name: None for trial in trials}
    assert heard.ended == {trial.name: False for trial in trials}
    assert heard.started.count("pool-ray") == 2
    assert heard.retried == {"pool-ray": "RuntimeError: a cosmic ray"}
    assert [r for name, r, _ in heard.reported if name == "pool-ray"] == [2, 4]
    plain = replace(trials[1].config, output_dir=str(tmp_path / "plain"))
    run(replace(plain, pool=replace(plain.pool, kind="sequential")))
    expected = (tmp_path / "plain/adapter/adapter_model.safetensors").read_bytes()
    for kind in ("ray", "sequential"):
        folder = tmp_path / f"sweep/trials/pool-{kind}"
        assert (folder / "adapter/adapter_model.safetensors").read_bytes() == expected
        assert numbers(folder) == numbers(tmp_path / "plain")


def test_a_sweep_from_python_gives_a_row_for_each_trial_with_its_numbers_or_why_it_failed(local_ray, tmp_path):
    short = ["pool.kind=sequential", "federated.rounds=2", "align.layers.kind=none", "align.neurons.kind=none"]
    settings = SweepConfig(
        base=tiny_base(tmp_path, *short), output_dir=str(tmp_path / "sweep"), seeds=(1,),
        space={"federated.lr": {"grid": [0.001, 1e38]}}, driver_cpus=0.5, max_concurrent=2, max_retries=0,
    )  # fmt: skip
    table = fedpft.sweep(settings, progress=False)
    assert list(table["federated.lr"]) == [0.001, 1e38]
    assert list(table["status"]) == ["finished", "failed"]
    good, bad = table.iloc[0], table.iloc[1]
    assert good[settings.metric] == fedpft.load_result(good["path"]).summary[settings.metric]
    assert "rounds in a row did not count" in bad["error"]


def ranks():
    """Return a way to play trials: report the rank of the adapter in each of 9 rounds; rank 7 is bad luck, 9 worse.

    A run of rank 5 has enough after 4 rounds; one of rank 6 does not count.
    """

    def play(trial, report):  # a local one, so that it travels by value
        rank = trial.config.lora.rank
        if rank == 7:
            raise ValueError("bad luck")
        if rank == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        for round_index in range(1, 5 if rank in (5, 6) else 10):
            report(round_index, float(rank), float(rank))
        if rank == 6:
            raise NotCountedError("never trained: 1")

    return play


def rank_sweep(tmp_path, **settings):
    (tmp_path / "base.yaml").write_text("federated: {rounds: 9}\npool: {kind: sequential}\n")
    return SweepConfig(base=str(tmp_path / "base.yaml"), output_dir=str(tmp_path / "sweep"), **settings)


@pytest.mark.cluster
def test_asha_stops_a_bad_trial_early_and_one_that_fails_or_dies_spoils_no_other_and_is_told(local_ray, tmp_path):
    space = {"lora.rank": {"grid": [4, 7, 9, 5, 1, 6]}}
    sweep = rank_sweep(tmp_path, space=space, scheduler="asha", reduction_factor=2, max_concurrent=1, max_retries=1)
    heard = Heard()
    ended = engine.run_trials(sweep, planned_trials(sweep), ranks(), heard)
    rounds = {name: round_index for name, round_index, _ in heard.reported}
    assert rounds == {"rank-4": 9, "rank-5": 4, "rank-1": 1, "rank-6": 4}
    errors = {trial.name: error for trial, error in ended}
    assert (errors["rank-4"], errors["rank-5"], errors["rank-1"]) == (None, None, None)
    assert errors["rank-7"] == "ValueError: bad luck"
    assert "died" in errors["rank-9"]
    assert errors["rank-6"] == "never trained: 1"
    assert set(heard.retried) == {"rank-7", "rank-9"}, "another attempt of rank 6 would give the same"
    assert {name for name, failed in heard.ended.items() if failed} == {"rank-6", "rank-7", "rank-9"}
    assert len(heard.ended) == 6


@pytest.mark.cluster
def test_trials_whose_process_cannot_import_are_in_the_table_with_the_reason(local_ray, tmp_path, monkeypatch):
    only_here = ModuleType("only_here")
    exec("def play(trial, report): pass", only_here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    sweep = rank_sweep(tmp_path, seeds=(1, 2), max_retries=0)
    ended = engine.run_trials(sweep, planned_trials(sweep), only_here.play, Heard())
    reason = "ModuleNotFoundError: No module named 'only_here'"
    assert {trial.name: error for trial, error in ended} == {"seed-1": reason, "seed-2": reason}
    summary = sweeps.summarise(sweep, [sweeps.outcome(sweep, *one) for one in ended])
    assert [trial["status"] for trial in summary["trials"]] == ["failed", "failed"]
    assert [point["status"] for point in summary["points"]] == [{"failed": 2}]


def test_wandbs_variables_that_are_not_followed_are_told_before_any_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(engine, "run_trials", lambda *_, **__: [])
    with pytest.warns(UserWarning, match=r"^not followed, .*: WANDB_MODE=online \(tracking\.wandb\)$"):
        sweeps.run_sweep(rank_sweep(tmp_path), Heard())


def test_a_trial_that_tune_left_or_never_started_or_that_ended_without_a_result_has_failed(tmp_path):
    sweep = rank_sweep(tmp_path, seeds=(1, 2, 3))
    trials = planned_trials(sweep)

    def left(trial, status):
        nothing = {"get_pickled_error": lambda: None, "get_error": lambda: None}
        return SimpleNamespace(config={"trial": trial.to_json()}, status=status, last_result=None, **nothing)

    known = [left(trials[0], "TERMINATED"), left(trials[1], "PENDING")]
    ended = engine._ended(trials, SimpleNamespace(_experiment_analysis=SimpleNamespace(trials=known)))
    errors = [sweeps.outcome(sweep, *one).error for one in ended]
    assert errors == ["it ended without a result", "Ray Tune left it pending", "Ray Tune did not start it"]


@pytest.mark.cluster
def test_hyperband_stops_the_worse_and_the_one_that_it_paused_goes_on_to_the_bits_of_a_plain_run(local_ray, tmp_path):
    sweep = SweepConfig(
        base=tiny_base(tmp_path, "pool.kind=sequential"), output_dir=str(tmp_path / "sweep"),
        space={"federated.lr": {"grid": [1e-3, 2e-3, 4e-3, 3e-3]}}, scheduler="hyperband", reduction_factor=4,
        metric="lr", goal="max", driver_cpus=2.0,  # one after the other, and the one that waits for the last is better
    )  # fmt: skip
    trials, heard = planned_trials(sweep), Heard()
    ended = engine.run_trials(sweep, trials, partial(sweeps.play_trial, sweep.metric, sweep.goal), heard)
    assert [error for _, error in ended] == [None] * 4
    rounds = {name: round_index for name, round_index, _ in heard.reported}
    assert [rounds[trial.name] for trial in trials] == [4, 4, 4, 2], "two brackets, the second keeps one of two"
    assert [heard.started.count(trial.name) for trial in trials] == [1, 1, 2, 1]
    *_, paused, stopped = trials
    assert sweeps.outcome(sweep, stopped, None).status == "stopped"
    run(replace(paused.config, output_dir=str(tmp_path / "plain")))
    adapters = [tmp_path / place / "adapter/adapter_model.safetensors" for place in ("plain", paused.config.output_dir)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_optuna_gets_the_mean_over_the_seeds_that_did_not_fail(tmp_path):
    pytest.importorskip("optuna")
    search = pytest.importorskip("fedpft.simulation.search")
    space = {"lora.rank": {"randint": [1, 64]}, "method.scorer": {"choice": ["random", "greedy"]}}
    sweep = rank_sweep(tmp_path, space=space, search="optuna", seeds=(1, 2))
    searcher = search.SeededOptuna(sweep)
    trials = [Trial.from_json(searcher.suggest(f"id{index}")["trial"]) for index in range(6)]
    assert [trial.config.seed for trial in trials] == [1, 2] * 3
    assert [trial.name[:3] for trial in trials] == ["000", "000", "001", "001", "002", "002"]
    assert trials[0].settings == trials[1].settings != trials[2].settings
    for index, score in enumerate((0.25, 0.75, 0.5)):
        searcher.on_trial_complete(f"id{index}", {"score": score})
    searcher.on_trial_complete("id3", {"score": 9.0, search.NOT_COUNTED: "never trained"})
    searcher.save(tmp_path / "searcher")
    restored = search.SeededOptuna(sweep)
    restored.restore(tmp_path / "searcher")
    for index in range(4, 6):
        restored.on_trial_complete(f"id{index}", error=True)
    first, second, third = restored._study.trials
    assert (first.value, second.value, third.value) == (0.5, 0.5, None)
    assert third.state.name == "FAIL"
    assert Trial.from_json(restored.suggest("id6")["trial"]).name.startswith("003_rank-")


@pytest.mark.cluster
def test_optuna_runs_every_point_that_it_asks_for_with_every_seed(local_ray, tmp_path):
    pytest.importorskip("optuna")
    space, heard = {"lora.rank": {"randint": [1, 6]}}, Heard()
    sweep = rank_sweep(tmp_path, space=space, search="optuna", seeds=(1, 2), num_samples=2, max_concurrent=1)
    ended = engine.run_trials(sweep, planned_trials(sweep), ranks(), heard)
    assert [error for _, error in ended] == [None] * 4
    asked = [(trial.name[:3], trial.config.seed) for trial, _ in ended]
    assert asked == [(f"00{number}", seed) for number in range(2) for seed in (1, 2)]
    assert heard.ended == {trial.name: False for trial, _ in ended}
    assert {trial.config.tracking.job_type for trial, _ in ended} == {"trial"}
    assert all(trial.config.lora.rank == trial.settings["lora.rank"] <= 6 for trial, _ in ended)


@pytest.mark.parametrize(
    ("pool", "settings", "expected"),
    [
        ("{kind: sequential}", {}, [{"CPU": 1.0, "GPU": 1.0}]),  # its clients train in the driver's process
        ("{kind: sequential}", {"max_concurrent": 8}, [{"CPU": 1.0, "GPU": 0.25}]),
        ("{kind: sequential}", {"driver_cpus": 2.0, "driver_gpus": 0.5}, [{"CPU": 2.0, "GPU": 0.5}]),
        ("{actors: 2, cpus_per_actor: 0.5}", {}, [{"CPU": 1.0}, {"CPU": 0.5}, {"CPU": 0.5}]),
        ("{actors: auto}", {}, [{"CPU": 1.0}] * 8),  # the driver and 7 actors: the whole machine
        ("{actors: auto}", {"max_concurrent": 2}, [{"CPU": 1.0}] * 4),
        ("{actors: auto}", {"max_concurrent": 20}, [{"CPU": 1.0}] * 2),
        ("{actors: auto, gpus_per_actor: 0.5}", {}, [{"CPU": 1.0, "GPU": 1.0}, *[{"CPU": 1.0, "GPU": 0.5}] * 2]),
        ("{actors: auto, gpus_per_actor: auto}", {}, [{"CPU": 1.0, "GPU": 1.0}] * 2),
        ("{actors: per_client}", {}, [{"CPU": 1.0}] * 11),
    ],
)  # fmt: skip
def test_a_trial_asks_for_its_driver_and_all_its_actors_at_once(pool, settings, expected):
    sweep = SweepConfig(base="", **settings)
    config = load_config(None, [f"pool={pool}"])
    assert places.bundles(sweep, config, [places.Node(cpus=4, gpus=1), places.Node(cpus=4, gpus=1)]) == expected


def test_a_trials_driver_claims_the_gpus_of_its_server():
    config = load_config(None, ["pool.kind=sequential", "server.num_gpus=1"])
    assert places.bundles(SweepConfig(base=""), config, [places.Node(cpus=4, gpus=1)]) == [{"CPU": 1.0, "GPU": 1.0}]


def test_a_trial_that_the_cluster_can_never_hold_is_refused(local_ray, tmp_path):
    sweep = rank_sweep(tmp_path, run={"pool": {"kind": "ray", "actors": 2}})
    with pytest.raises(ConfigError, match=r"a trial asks 3 CPU for a driver and 2 actor\(s\), the cluster has 2 CPU"):
        engine.run_trials(sweep, planned_trials(sweep), ranks(), Heard())


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_ended_goes_on_with_what_is_missing(tmp_path, number):
    base = tiny_base(tmp_path)
    file = tmp_path / "sweep.yaml"
    file.write_text(f"base: {base}\nseeds: [1, 2]\nmax_concurrent: 1\noutput_dir: {tmp_path / 'sweep'}\n")
    command = [sys.executable, "-m", "fedpft.cli", "sweep", str(file)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    first, second = (tmp_path / f"sweep/trials/seed-{seed}" for seed in (1, 2))
    deadline = time.monotonic() + 600
    try:
        while not (second / "rounds.jsonl").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "too slow"
            time.sleep(0.05)
        if number == signal.SIGTERM:
            started = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, number)  # what `timeout` does, Slurm, systemd
            _, errors = process.communicate(timeout=MAX_SECONDS)
            assert process.returncode == 143
            assert errors.splitlines()[-1] == f"interrupted; go on with: fedpft sweep {file} --resume"
            assert len(errors.splitlines()) == 1, errors
            _, alive = psutil.wait_procs(started, timeout=MAX_SECONDS)
            assert [child.name() for child in alive] == []
    finally:
        process.kill()
        process.wait()
    assert not (second / "result.json").exists()
    written = (first / "result.json").stat().st_mtime_ns
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (first / "result.json").stat().st_mtime_ns == written
    summary = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [trial["status"] for trial in summary["trials"]] == ["finished"] * 2
    (point,) = summary["points"]
    assert point["values"] == [json.loads((folder / "result.json").read_text())["fm"] for folder in (first, second)]
    assert "2 finished" in again.stdout
