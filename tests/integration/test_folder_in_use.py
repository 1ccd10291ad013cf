"""One writer a folder: whoever finds another at work there is told so, and touches nothing."""

import json

import pytest

from fedpft.config import ConfigError, dump_config, load_config
from fedpft.config.suite import HeadConfig, SuiteConfig
from fedpft.config.sweep import SweepConfig
from fedpft.config.trials import planned_trials
from fedpft.federated.observer import SilentObserver
from fedpft.run.pipeline import run
from fedpft.run.resume import go_on
from fedpft.storage.lock import HOLDER_FILE
from fedpft.sweeps.suite import run_suite
from tests.tiny import tiny_text_run

sweeps = pytest.importorskip("fedpft.sweeps.sweep", reason="Ray is not installed", exc_type=ImportError)


def suite(folder):
    heads = [HeadConfig(label="all")]
    return SuiteConfig(base=str(folder / "base.yaml"), rows=heads, columns=heads, output_dir=str(folder / "out"))


def sweep(folder):
    return SweepConfig(base=str(folder / "base.yaml"), output_dir=str(folder / "out"))


def play(folder):
    (trial,) = planned_trials(sweep(folder.parent.parent))
    sweeps.play_trial("fm", None, trial, print)


WRITERS = {
    "run": ("out", lambda folder: run(load_config(folder.parent / "base.yaml"))),
    "resume": ("out", lambda folder: go_on(load_config(folder.parent / "base.yaml"))),
    "sweep": ("out", lambda folder: sweeps.run_sweep(sweep(folder.parent), None)),
    "sweep --resume": ("out", lambda folder: sweeps.run_sweep(sweep(folder.parent), None, resume=True)),
    "suite": ("out", lambda folder: run_suite(suite(folder.parent), None)),
    "trial": ("out/trials/base", lambda folder: play(folder.parent)),
}


@pytest.mark.parametrize(("place", "write"), WRITERS.values(), ids=WRITERS)
def test_a_folder_in_use_is_refused_and_not_touched(tmp_path, monkeypatch, place, write):
    monkeypatch.setattr(sweeps, "PATIENCE_SECONDS", 0)
    (tmp_path / "base.yaml").write_text(dump_config(load_config(None, tiny_text_run(tmp_path))))
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "rounds.jsonl").write_text("")
    (folder / HOLDER_FILE).write_text(json.dumps({"what": "run", "host": "elsewhere", "pid": 7, "since": "today"}))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
    with pytest.raises(ConfigError, match=r"where a run is in progress \(process 7 on elsewhere, since today\)"):
        write(folder)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before


def test_a_run_says_what_its_server_works_on_and_nothing_while_clients_train(tmp_path):
    said = {}

    class Watcher(SilentObserver):
        def stage(self, title):
            said[title] = doing()

        def client_finished(self, update):
            said["clients"] = doing()

    def doing():
        return json.loads((tmp_path / "out" / HOLDER_FILE).read_text())["doing"]

    settings = [*tiny_text_run(tmp_path), "federated.rounds=1", f"cache.dir={tmp_path / 'cache'}"]
    run(load_config(None, settings), Watcher())
    assert said.pop("clients") == ""
    assert said == {title: title for title in said}
    assert {"load FM", "construct sub-FM", "evaluate untuned FM", "write results"} <= said.keys()
