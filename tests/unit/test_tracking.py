import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from fedpft.config import Config, ConfigError, TrackingConfig
from fedpft.metric_names import wandb_definitions, wandb_metrics
from fedpft.report.fidelity import heat_map
from fedpft.tracking import JsonlTracker, check_tracking, make_trackers

ROUNDS = [
    {"round": 1, "clients": [0, 3], "train_loss": 0.9, "lr": 1e-3, "seconds": 1.5, "comm/bytes_up": 4000},
    {"round": 2, "clients": [1, 2], "train_loss": 0.5, "lr": 5e-4, "seconds": 1.4, "fm": 0.8, "sub_fm": 0.7}
    | {"align": {"loss": 0.1}, "time": {"fit_seconds": 1.2}},
]
FIDELITY = {"hidden_error": [0.5, 0.25], "gradient_cosine": [0.75, None], "gradient_norm_ratio": [1.5, 2.0]}
FIDELITY |= {"total": {"hidden_error": 0.25, "gradient_cosine": None, "gradient_norm_ratio": 1.75}}
METERED = {"round": 0, "fm": 0.1, "sub_fm": 0.2, "leakage_gap": -0.1, "fidelity": FIDELITY}
METERED |= {"time/fidelity_seconds": 3.0}
CLIENTS = [
    {"client_id": 1, "num_examples": 10, "loss": 0.4, "seconds": 0.6, "actor": "actor-0"},
    {"client_id": 2, "num_examples": 30, "loss": 0.6, "seconds": 0.7, "actor": "actor-1"},
]


def read_wandb(path: Path) -> list:
    """Return the records of a `.wandb` file: LevelDB's log format, 7 bytes of file header, blocks of 32 KiB."""
    data, position, records, parts = path.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole record, or the last part of one
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # restored afterwards
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "run"


def test_rounds_are_lines_at_once(tmp_path: Path):
    tracker = JsonlTracker(tmp_path)
    for record in [{"round": 0, "fm": 0.1}, *ROUNDS]:
        tracker.log_round(record)
    assert [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()] == ROUNDS
    tracker.finish({}, {})


def test_a_second_tracker_goes_on_in_the_same_file(tmp_path: Path):
    for record in ROUNDS:
        tracker = JsonlTracker(tmp_path)
        tracker.log_round(record)
        tracker.fail()
    assert [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()] == ROUNDS


def test_offline_run_holds_everything(output: Path, capfd: pytest.CaptureFixture):
    config = Config(name="my run", tracking=TrackingConfig(wandb="offline"))
    tracker = make_trackers(config, output)
    tracker.log_stage({"align/step": 1, "align/loss": 0.7})
    tracker.log_round(METERED)
    tracker.log_figure("fidelity/heat_map", heat_map([METERED]))
    for record in ROUNDS:
        tracker.log_round(record)
    tracker.log_clients(2, CLIENTS)
    adapter = output / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    tracker.finish({"fm": 0.8, "versions": {"torch": "2"}}, {"adapter": adapter, "sub_fm": output})

    wandb.teardown()  # what the end of the process does: the service writes its file to the end
    assert capfd.readouterr() == ("", "")
    assert len((output / "rounds.jsonl").read_text().splitlines()) == len(ROUNDS)
    folder = Path(tracker.locations["wandb"])
    assert folder.parent == output / "wandb"
    records = read_wandb(next(folder.glob("*.wandb")))

    def items(kind: str, field: str) -> dict:
        updates = [
            item for record in records if record.HasField(kind) for item in getattr(getattr(record, kind), field)
        ]
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}

    history = items("history", "item")
    expected = {"round": 2, "server/fm": 0.8, "server/sub_fm": 0.7, "server/train_loss": 0.5, "server/lr": 5e-4}
    expected |= {"server/align_loss": 0.1, "align/step": 1, "align/loss": 0.7, "comm/bytes_up": 4000}
    expected |= {"time/round_seconds": 1.4, "time/fit_seconds": 1.2, "clients/loss_min": 0.4, "clients/loss_max": 0.6}
    assert history.items() >= expected.items()
    expected_of_layers = {"fidelity/hidden_error/layer_00": 0.5, "fidelity/hidden_error/layer_01": 0.25}
    expected_of_layers |= {"fidelity/gradient_cosine/layer_00": 0.75, "fidelity/gradient_norm_ratio/layer_01": 2.0}
    totals = {"fidelity/hidden_error": 0.25, "fidelity/gradient_norm_ratio": 1.75, "server/leakage_gap": -0.1}
    assert history.items() >= (expected_of_layers | totals | {"time/fidelity_seconds": 3.0}).items()
    assert not {"fidelity/gradient_cosine", "fidelity/gradient_cosine/layer_01"} & history.keys(), "undefined"
    assert history["fidelity/heat_map/_type"] == "plotly-file"
    assert (folder / "files" / history["fidelity/heat_map/path"]).stat().st_size > 0
    assert history["clients/loss_mean"] == pytest.approx(0.5)
    assert history["clients/table/_type"] == "incremental-table-file"
    assert items("summary", "update")["result/fm"] == 0.8
    run = next(record.run for record in records if record.HasField("run"))
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert settings["federated"]["num_clients"] == config.federated.num_clients
    metrics = {
        record.metric.name or record.metric.glob_name: record.metric for record in records if record.metric.ByteSize()
    }
    assert metrics["server/*"].step_metric == "round"
    assert metrics["align/*"].step_metric == "align/step"
    assert metrics["server/fm"].summary.max
    assert metrics["fidelity/*"].step_metric == "round"
    assert metrics["fidelity/hidden_error"].summary.min
    assert metrics["fidelity/gradient_cosine"].summary.max
    artifacts = {record.artifact.name: record.artifact for record in records if record.HasField("artifact")}
    assert artifacts["my-run-adapter"].type == "model"
    assert not any("sub_fm" in name for name in artifacts)


@pytest.mark.parametrize("goal", ["max", "min"])
def test_the_summary_keeps_the_best_of_the_primary_metric(goal: str):
    kept = {name: summary for name, _, summary in wandb_definitions(goal)}
    assert (kept["server/fm"], kept["server/sub_fm"], kept["metrics/*"]) == (goal, goal, None)


def test_every_metric_of_a_record_has_a_name_of_its_own():
    metrics = {"fm": {"f1": 0.5, "mismatched/f1": 0.25}, "sub_fm": {"f1": 0.75, "mismatched/f1": 0.0}}
    record = {"round": 1, "fm": 0.5, "metric": "f1", "metric_goal": "max", "metrics": metrics}
    assert wandb_metrics(record) == {
        "server/fm": 0.5,
        "metrics/fm/f1": 0.5,
        "metrics/fm/mismatched/f1": 0.25,
        "metrics/sub_fm/f1": 0.75,
        "metrics/sub_fm/mismatched/f1": 0.0,
    }


def test_disabled_never_imports_wandb(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from fedpft.config import *; from fedpft.tracking import make_trackers\n"
        "tracker = make_trackers(Config(tracking=TrackingConfig(wandb='disabled')), Path(sys.argv[1]))\n"
        "tracker.log_round({'round': 1}); tracker.finish({}, {}); sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "rounds.jsonl"]


@pytest.mark.parametrize("wandb_mode", ["offline", "disabled"])
def test_only_online_needs_a_key(wandb_mode: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("asked for a key"))
    check_tracking(TrackingConfig(wandb=wandb_mode))


def test_a_missing_key_is_known_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(
        ConfigError, match=r"^tracking\.wandb: found 'online', but W&B says: .*: offline, disabled$"
    ) as error:
        check_tracking(TrackingConfig(wandb="online"))
    assert "\n" not in str(error.value)


def test_online_without_a_key_is_one_line(output: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"tracking\.wandb.*offline") as error:
        make_trackers(Config(tracking=TrackingConfig(wandb="online")), output)
    assert "\n" not in str(error.value)
    assert not (output / "rounds.jsonl").exists()
