"""The commands of sweeps and suites; what Tune does with trials is in tests/simulation."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpft.cli.main import app
from fedpft.config import dump_config
from fedpft.config.suite import load_suite
from fedpft.interrupt import Interrupted
from fedpft.sweeps.suite import suite_trials

SUITE = """
name: s
title: A table
base: base.yaml
rows: [{label: FedPFT, set: {method.name: fedpft}}, {label: Full, set: {method.name: full}}]
columns: [{label: A, set: {lora.rank: 1}}]
seeds: [1]
"""
NAMES = ["lr-0.1", "lr-0.2"]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "base.yaml").write_text("name: base\n")
    space = "space: {federated.lr: {grid: [0.1, 0.2]}}"
    (tmp_path / "sweep.yaml").write_text(f"base: base.yaml\noutput_dir: {tmp_path}/out\nseeds: []\n{space}\n")
    (tmp_path / "suite.yaml").write_text(f"{SUITE}output_dir: {tmp_path}/out\n")
    return tmp_path


def fedpft(*words):
    return CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})


def test_a_dry_run_of_a_sweep_lists_its_trials_and_runs_none(files):
    shown = fedpft("sweep", files / "sweep.yaml", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert [name for name in NAMES if name in shown.output] == NAMES
    found = json.loads(fedpft("sweep", files / "sweep.yaml", "--dry-run", "--format", "json").stdout)
    assert found == {"trials": NAMES, "total": 2, "output_dir": str(files / "out")}
    assert not (files / "out").exists()


@pytest.mark.parametrize(("error", "code"), [(None, 0), ("bad luck", 1)])
def test_the_exit_code_of_a_sweep_tells_whether_a_trial_failed(files, monkeypatch, error, code):
    summary = {"trials": [{"name": name, "status": "finished", "error": error} for name in NAMES]}
    asked = {}

    def run_sweep(settings, screen, *, resume, say):
        asked.update(resume=resume, lr=settings.space["federated.lr"])
        return summary

    monkeypatch.setattr("fedpft.sweeps.sweep.run_sweep", run_sweep)
    done = fedpft("sweep", files / "sweep.yaml", "--resume", "--format", "json")
    assert json.loads(done.stdout) == summary
    assert done.exit_code == code
    assert asked == {"resume": True, "lr": {"grid": [0.1, 0.2]}}


def test_a_sweep_that_is_interrupted_says_how_to_go_on(files, monkeypatch):
    def run_sweep(*_, **__):
        raise Interrupted(2)

    monkeypatch.setattr("fedpft.sweeps.sweep.run_sweep", run_sweep)
    with pytest.raises(Interrupted) as stopped:
        fedpft("sweep", files / "sweep.yaml", "max_concurrent=1")
    again = f"; go on with: fedpft sweep {files / 'sweep.yaml'} max_concurrent=1 --resume"
    assert stopped.value.__notes__ == [again]


def finish(trial, accuracy):
    folder = Path(trial.config.output_dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(trial.config))
    result = {"metric": "accuracy", "metrics": {"fm": {"accuracy": accuracy}}}
    (folder / "result.json").write_text(json.dumps(result))


def test_a_dry_run_of_a_suite_lists_what_is_missing_and_prints_what_there_is(files):
    trials = suite_trials(load_suite(files / "suite.yaml", []))
    finish(trials[0], 0.875)
    shown = fedpft("suite", files / "suite.yaml", "--dry-run", "--format", "json")
    assert shown.exit_code == 0, shown.output
    table = json.loads(shown.stdout)
    assert (table["title"], table["rows"], table["columns"]) == ("A table", ["FedPFT", "Full"], ["A"])
    assert "87.5" in json.dumps(table["cells"]) or "0.875" in json.dumps(table["cells"])
    assert trials[1].name in shown.stderr
    assert trials[0].name not in shown.stderr
    assert not (files / "out/suite.html").exists()


def test_a_suite_runs_what_is_missing_writes_its_page_and_names_who_failed(files, monkeypatch):
    trials = suite_trials(load_suite(files / "suite.yaml", []))
    finish(trials[0], 0.875)
    monkeypatch.setattr("fedpft.cli.sweeps.run_suite", lambda settings, screen: {trials[1].name: "bad luck"})
    done = fedpft("suite", files / "suite.yaml", "--format", "markdown")
    assert done.exit_code == 1
    assert f"{trials[1].name} failed: bad luck" in done.stderr
    assert "| FedPFT | 87.5" in done.stdout
    assert "A table" in (files / "out/suite.html").read_text(encoding="utf-8")
