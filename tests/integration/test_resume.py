"""A run that is killed and goes on ends as the run that never stopped, bit for bit."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fedpft.config import ConfigError, dump_config, load_config
from fedpft.federated.observer import SilentObserver
from fedpft.run.pipeline import run
from fedpft.run.resume import go_on
from fedpft.storage.checkpoint import Checkpoints, load_newest
from tests.tiny import tiny_fm, tiny_text_run, tiny_vision_run

ROUNDS = ["federated.rounds=5", "method.uncompressed_layers=[0]", "evaluation.interval=2"]
ROUNDS += [
    "federated.head_inputs=standardized",
    "method.plug_in=distill",
    "align.adapter.num_steps=3",
    "align.adapter.batch_size=4",
]
"""Neurons are aligned after rounds 2 and 4."""
STOPS = {
    "after an alignment": ("AfterCheckpoint", 3),
    "tracked, not saved": ("BeforeCheckpoint", 3),
    "within a checkpoint": ("WithinCheckpoint", 1),
}
MEASURED = re.compile("seconds|utilisation|memory|^cached$")
"""Keys of what is no property of the numbers: times, memory, and whether the sub-FM was there already."""


class Stop(BaseException):
    pass


class StopBefore(SilentObserver):
    """Ends the run when a round begins."""

    def __init__(self, round_index):
        self.round_index = round_index

    def round_started(self, round_index, num_rounds, client_ids):
        if round_index == self.round_index:
            raise Stop


def outcome(folder):
    """Return all that a run leaves but for times: bytes of adapter and sub-FM, rounds, result, names of files."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return {
        "adapter": (folder / "adapter/adapter_model.safetensors").read_bytes(),
        "sub_fm": (folder / "sub_fm/model.safetensors").read_bytes(),
        "sub_fm_adapter": (folder / "sub_fm_adapter/adapter_model.safetensors").read_bytes(),
        "rounds": [untimed(line) for line in lines],
        "result": untimed(json.loads((folder / "result.json").read_text())),
        "files": sorted(path.name for path in folder.iterdir()),
    }


def untimed(record):
    return {
        key: untimed(value) if isinstance(value, dict) else value
        for key, value in record.items()
        if not MEASURED.search(key)
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return [*tiny_text_run(tmp_path_factory.mktemp("data")), *ROUNDS]


@pytest.fixture(scope="module")
def straight(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "out"
    run(load_config(None, [*settings, f"output_dir={folder}"]))
    return outcome(folder)


@pytest.fixture(scope="module")
def killed(settings, tmp_path_factory):
    """Return the folders of runs that were killed, by when."""
    parent, plan = tmp_path_factory.mktemp("killed"), []
    for name, stop in STOPS.items():
        config = parent / f"{name}.yaml"
        config.write_text(dump_config(load_config(None, [*settings, f"output_dir={parent / name}"])))
        plan.append([str(config), *stop])
    subprocess.run([sys.executable, "-m", "tests.integration.stop_run", json.dumps(plan)], check=True, timeout=300)
    return {name: parent / name for name in STOPS}


@pytest.fixture
def copy(killed, settings, tmp_path):
    """Return a function that copies a killed run and returns its folder and its config with other settings."""

    def make(name, *overrides):
        folder = tmp_path / "out"
        shutil.copytree(killed[name], folder, ignore=shutil.ignore_patterns(".lock*"))
        return folder, load_config(None, [*settings, f"output_dir={folder}", *overrides])

    return make


@pytest.mark.parametrize("name", ["tracked, not saved", "within a checkpoint"])
def test_killed_and_resumed_is_the_straight_run(copy, straight, name):
    folder, config = copy(name)
    done = STOPS[name][1]
    assert load_newest(folder / "checkpoints").rounds_done == done
    lines = len((folder / "rounds.jsonl").read_text().splitlines())
    assert lines == done + 1
    said = []
    go_on(config, say=said.append)
    assert said == [f"{folder}: going on after round {done}"]
    assert outcome(folder) == straight
    assert [record["round"] for record in straight["rounds"]] == [1, 2, 3, 4, 5]


def test_a_run_may_stop_after_every_round(settings, straight, tmp_path):
    config = load_config(None, [*settings, f"output_dir={tmp_path / 'out'}"])
    for round_index in (1, 2, 3, 4, 5):
        with pytest.raises(Stop):
            go_on(config, StopBefore(round_index))
    go_on(config)
    assert outcome(tmp_path / "out") == straight


class StopAt(SilentObserver):
    """Ends the run without a word when a client's update has arrived, or when a round is tracked but not saved."""

    def __init__(self, round_index, client=None):
        self.round_index, self.client, self.now, self.arrived = round_index, client, 0, 0

    def round_started(self, round_index, num_rounds, client_ids):
        self.now, self.arrived = round_index, 0

    def client_finished(self, update):
        self.arrived += 1
        if (self.now, self.arrived) == (self.round_index, self.client):
            raise Stop

    def round_finished(self, record):
        if self.now == self.round_index and self.client is None:
            raise Stop


def test_what_clients_send_as_their_state_is_kept_with_the_rounds_checkpoint_or_not_at_all(
    settings, tmp_path, monkeypatch
):
    settings = [*settings, "federated.client.kind=scaffold", "federated.lr=0.1", "checkpoint.interval=2"]
    settings += [
        "align.neurons.kind=none",
        "method.plug_in=copy",
        "evaluation.interval=5",
        "evaluation.fidelity_examples=0",
    ]
    run(load_config(None, [*settings, f"output_dir={tmp_path / 'straight'}"]))
    config = load_config(None, [*settings, f"output_dir={tmp_path / 'out'}"])
    monkeypatch.setattr(Checkpoints, "flush", lambda self: None)  # as if the process were killed
    left = []
    for moment in (StopAt(4), StopAt(5, client=2)):
        with pytest.raises(Stop):
            go_on(config, moment)
        rounds = {int(path.stem.split("-")[-1]) for path in (tmp_path / "out/checkpoints/clients").iterdir()}
        left.append((load_newest(tmp_path / "out/checkpoints").rounds_done, max(rounds)))
    assert left == [(2, 4), (4, 5)], "what is newer than the checkpoint is there, and not believed"
    go_on(config)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "straight")


def test_with_an_interval_the_last_finished_round_is_kept_when_the_run_can_still_say_so(settings, straight, tmp_path):
    config = load_config(None, [*settings, f"output_dir={tmp_path / 'out'}", "checkpoint.interval=100"])
    with pytest.raises(Stop):
        go_on(config, StopBefore(4))
    assert load_newest(tmp_path / "out/checkpoints").rounds_done == 3
    go_on(config)
    assert outcome(tmp_path / "out") == straight


def test_a_resumed_run_neither_constructs_nor_aligns_layers_nor_evaluates_the_untuned_fm_again(
    copy, straight, monkeypatch
):
    def refuse(*_, **__):
        raise AssertionError("not again")

    class Stages(SilentObserver):
        heard = ()

        def stage(self, title):
            self.heard += (title,)

    for name in ("compress", "align_layers"):
        monkeypatch.setattr(f"fedpft.methods.proxy_tuning.{name}", refuse)
    monkeypatch.setattr("fedpft.run.tuning.measure_head_inputs", refuse)  # the public data may be others by now
    folder, config = copy("after an alignment")
    stages = Stages()
    go_on(config, stages)
    assert outcome(folder) == straight
    assert "restore sub-FM" in stages.heard
    assert "evaluate untuned FM" not in stages.heard


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_torn_newest_checkpoint_costs_a_round_and_a_warning(copy, straight):
    folder, config = copy("after an alignment")
    flip_a_bit(folder / "checkpoints/round-0003/adapter.safetensors")
    said = []
    with pytest.warns(UserWarning, match="round-0003: unusable checkpoint skipped"):
        go_on(config, say=said.append)
    assert said == [f"{folder}: going on after round 2"]
    assert outcome(folder) == straight


def test_other_settings_are_refused_with_all_keys_and_nothing_is_touched(copy):
    folder, config = copy("after an alignment", "federated.lr=0.02", "seed=7", "pool.actors=3")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ConfigError) as error:
        go_on(config)
    expected = "output_dir: the run in %r has other settings (saved -> now): federated.lr: 0.01 -> 0.02; seed: 42 -> 7"
    assert str(error.value) == expected % str(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_fm_behind_the_same_path_is_refused_and_nothing_is_touched(copy, settings, tmp_path):
    folder, config = copy("after an alignment")
    path = Path(config.fm.path)
    shutil.copytree(path, tmp_path / "kept")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    tiny_fm("bert", seed=1).save_pretrained(path)
    try:
        with pytest.raises(
            ConfigError, match=r"^fm\.path: found .*fm' with digest \w+, the run began with \w+, allowed"
        ):
            go_on(config)
    finally:
        shutil.copytree(tmp_path / "kept", path, dirs_exist_ok=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_whose_last_step_fails_is_finished_when_it_goes_on(settings, straight, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("cannot be saved")

    config = load_config(None, [*settings, f"output_dir={tmp_path / 'out'}", "checkpoint.interval=100"])
    monkeypatch.setattr("fedpft.run.pipeline.save_adapter", fails)
    with pytest.raises(ValueError, match="cannot be saved"):
        run(config)
    assert not (tmp_path / "out/result.json").exists()
    assert json.loads((tmp_path / "out/ended.json").read_text())["reason"] == "ValueError: cannot be saved"
    monkeypatch.undo()
    monkeypatch.setattr("fedpft.federated.driver.Driver.run_round", None)
    go_on(config)
    assert outcome(tmp_path / "out") == straight


@pytest.mark.usefixtures("local_ray")
@pytest.mark.cluster
def test_where_the_clients_run_may_change(copy, straight):
    folder, config = copy("after an alignment", "pool.kind=ray", "pool.actors=2", "name=moved", "checkpoint.interval=2")
    go_on(config)
    result = outcome(folder)
    result["result"] |= {"name": "tiny", "actors": 1}
    assert result == straight


def test_a_finished_run_says_so_and_gives_its_result(settings, tmp_path):
    config = load_config(None, [*settings, f"output_dir={tmp_path / 'out'}", "federated.rounds=1"])
    result = run(config).result
    before = sorted(tmp_path.rglob("*"))
    said = []
    assert go_on(config, say=said.append).result == json.loads(json.dumps(result))
    assert said == [f"{tmp_path / 'out'}: the run is finished"]
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ConfigError, match=r"federated\.rounds: 1 -> 2"):
        go_on(load_config(None, [*settings, f"output_dir={tmp_path / 'out'}", "federated.rounds=2"]))


def test_without_a_checkpoint_the_run_begins_and_an_older_one_is_kept(settings, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/rounds.jsonl").write_text("older\n")
    config = load_config(None, [*settings, f"output_dir={tmp_path / 'out'}", "federated.rounds=1"])
    said = []
    go_on(config, say=said.append)
    assert said == [f"{tmp_path / 'out'}: no checkpoint, starting from the beginning"]
    assert (tmp_path / "out.1/rounds.jsonl").read_text() == "older\n"
    assert (tmp_path / "out/result.json").exists()


def test_an_fm_of_the_runs_own_comes_back_bit_for_bit_without_another_pre_training(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    configs = [load_config(None, [*tiny_vision_run(tmp_path), f"output_dir={tmp_path / name}"]) for name in ("a", "b")]
    run(configs[0])
    with pytest.raises(Stop):
        run(configs[1], StopBefore(2))
    monkeypatch.setattr("fedpft.run.inputs.pretrain_backbone", None)
    weights = tmp_path / "b/fm/model.safetensors"
    kept, tensors = weights.read_bytes(), load_file(weights)
    name = next(name for name in tensors if "mlp" in name or "intermediate" in name)
    save_file(tensors | {name: tensors[name] + 1}, weights, metadata={"format": "pt"})
    with pytest.raises(
        ConfigError, match=r"^fm\.path: found .*b/fm' with digest \w+, the run began with \w+, allowed: "
    ):
        go_on(configs[1])
    weights.write_bytes(kept)
    go_on(configs[1])
    assert outcome(tmp_path / "b") == outcome(tmp_path / "a")
    assert (tmp_path / "b/fm/model.safetensors").read_bytes() == (tmp_path / "a/fm/model.safetensors").read_bytes()


def test_the_wandb_run_is_continued_under_its_id(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # restored afterwards
    overrides = [f"output_dir={tmp_path / 'out'}", "tracking.wandb=offline", "federated.rounds=3"]
    config = load_config(None, [*settings, *overrides])
    with pytest.raises(Stop):
        run(config, StopBefore(2))
    first = list((tmp_path / "out/wandb").glob("offline-run-*"))
    go_on(config)
    folders = sorted((tmp_path / "out/wandb").glob("offline-run-*"))
    assert (len(first), len(folders)) == (1, 2)
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
