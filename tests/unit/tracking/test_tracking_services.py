import csv
import json
import sqlite3
import threading
import warnings
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedpft.config import Config, ConfigError, TrackingConfig, doubtful_settings, load_config
from fedpft.config.tracking import shown_url
from fedpft.report.fidelity import heat_map
from fedpft.tracking import services
from fedpft.tracking.queued import Queued, TooSlowError
from fedpft.tracking.services import check_trackers, make_trackers
from fedpft.tracking.trackers import Tolerated

ROUNDS = [
    {"round": number, "clients": [0, 3], "train_loss": 1 / number, "client_losses": [0.25, 0.75], "lr": 1e-3}
    | {"comm/bytes_up": 4000, "fm": 0.1 * number, "metrics": {"fm": {"accuracy": 0.1 * number}}}
    for number in (1, 2, 3)
]
LAYERS = {"hidden_error": [0.5], "gradient_cosine": [0.75], "gradient_norm_ratio": [1.5]}
NAMES = {"server/train_loss", "server/lr", "comm/bytes_up", "server/fm", "metrics/fm/accuracy"}
NAMES |= {"clients/loss_mean", "clients/loss_min", "clients/loss_max"}


def record(output: Path, *overrides: str, rounds=ROUNDS, steps=(1, 2), end=True, **resumed):
    """Record a part of a run; one that does not end fails."""
    config = load_config(None, ["name=mine", "federated.rounds=3", *overrides])
    tracker = make_trackers(config, output, "abcd1234", **resumed)
    for step in steps:
        tracker.log_stage({"align/step": step, "align/step_loss": 1 / step})
    for line in rounds:
        tracker.log_round(line)
        tracker.log_clients(line["round"], [])
    if not end:
        tracker.fail()
        return tracker
    tracker.log_figure("fidelity/heat_map", heat_map([{"round": 0, "fidelity": LAYERS}]))
    (output / "adapter").mkdir()
    (output / "adapter" / "weights").write_bytes(b"w")
    (output / "result.json").write_text("{}")
    result = {"fm": 0.3, "rounds": 3, "name": "mine"}
    tracker.finish(result, {"adapter": output / "adapter", "result": output / "result.json", "sub_fm": output})
    return tracker


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch):
    """Wait for a tracker as long as it takes."""
    monkeypatch.setattr(services, "Queued", lambda tracker: tracker)


def stopped_and_resumed(output: Path, name: str):
    """Record a run that was killed in round 3, before that was in a checkpoint, and goes on after round 1."""
    record(output, f"tracking.to=[{name}]", rounds=[*ROUNDS[:2], {**ROUNDS[2], "fm": 0.9}], steps=(1, 2, 3), end=False)
    return record(output, f"tracking.to=[{name}]", rounds=ROUNDS[1:], steps=(3,), rounds_done=1, align_steps=2)


def test_csv_has_a_line_a_round_under_our_names_and_a_resumed_run_has_each_once(tmp_path: Path, patient, recwarn):
    assert stopped_and_resumed(tmp_path, "csv").locations["csv"] == str(tmp_path / "csv")
    with (tmp_path / "csv/rounds/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert rows[0].keys() == NAMES | {"step"}
    assert [float(row["server/fm"]) for row in rows] == [line["fm"] for line in ROUNDS], "the newer of two third rounds"
    assert [float(rows[0][f"clients/loss_{name}"]) for name in ("mean", "min", "max")] == [0.5, 0.25, 0.75]
    with (tmp_path / "csv/alignments/metrics.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert [(row["step"], float(row["align/step_loss"])) for row in steps] == [("1", 1), ("2", 0.5), ("3", 1 / 3)]
    assert not [str(warning.message) for warning in recwarn]


def test_event_files_read_back_by_tensorboard_have_each_round_once_and_the_settings(tmp_path: Path, patient):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped_and_resumed(tmp_path, "tensorboard")
    found, described = {}, set()
    for axis in ("rounds", "alignments"):
        events = EventAccumulator(str(tmp_path / "tensorboard" / axis)).Reload()
        described |= events.summary_metadata.keys()
        found[axis] = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["rounds"].keys() >= NAMES | {"result/fm"}
    assert found["rounds"]["server/fm"] == [(line["round"], pytest.approx(line["fm"])) for line in ROUNDS]
    assert found["alignments"] == {"align/step_loss": [(step, pytest.approx(1 / step)) for step in (1, 2, 3)]}
    assert "_hparams_/session_start_info" in described


def test_mlflow_reads_back_one_run_with_numbers_settings_and_artifacts_after_a_resume(
    tmp_path: Path, patient, capfd, monkeypatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    stopped_and_resumed(tmp_path / "run", "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'run/mlflow/mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("fedpft").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.metrics.keys() == NAMES | {"result/fm", "result/rounds", "align/step_loss"}
    assert run.data.params["federated.rounds"] == "3"
    assert run.data.tags["fedpft.run_id"] == "abcd1234"
    history = client.get_metric_history(run.info.run_id, "server/fm")
    assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.2), (3, 0.9)], "the older third round"
    steps = client.get_metric_history(run.info.run_id, "align/step_loss")
    assert [point.step for point in steps] == [1, 2, 3]
    artifacts = {found.path for found in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"adapter", "fidelity", "result.json"}, "no sub-FM"
    assert not (tmp_path / "mlruns").exists()
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory):
    """Trackio's folder, which a process has once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        from trackio.utils import TRACKIO_DIR

        yield TRACKIO_DIR


def rows_of(database: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def test_trackios_database_has_one_run_with_settings_and_each_round_once_after_a_resume(
    tmp_path: Path, patient, trackio_folder, capfd
):
    assert stopped_and_resumed(tmp_path, "trackio").locations["trackio"] == str(trackio_folder)
    rows = rows_of(trackio_folder / "fedpft.db", "SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id")
    assert {row[:2] for row in rows} == {("abcd1234", "mine")}
    rounds = [(step, read) for *_, step, line in rows if "server/fm" in (read := json.loads(line))]
    assert [(step, read["server/fm"]) for step, read in rounds] == [(1, 0.1), (2, 0.2), (3, 0.9)], (
        "the older third round"
    )
    assert rounds[0][1].keys() == NAMES
    steps = [
        (step, read["align/step_loss"]) for *_, step, line in rows if "align/step_loss" in (read := json.loads(line))
    ]
    assert steps == [(1, 1), (2, 0.5), (3, 1 / 3)]
    assert [json.loads(row[-1]) for row in rows[6:]] == [{"result/fm": 0.3, "result/rounds": 3}]
    ((settings,),) = rows_of(trackio_folder / "fedpft.db", "SELECT config FROM configs")
    assert json.loads(settings)["federated.rounds"] == 3
    assert capfd.readouterr() == ("", "")


def test_runs_of_one_name_are_two_runs_in_trackio_and_its_own_reader_finds_their_numbers(
    tmp_path: Path, patient, trackio_folder
):
    from trackio import Api

    for run_id in ("one", "two"):
        config = load_config(None, ["name=mine", "tracking.to=[trackio]", "tracking.project=twice"])
        make_trackers(config, tmp_path / run_id, run_id).log_round(ROUNDS[0])
    runs = Api().runs("twice")
    assert {run.id for run in runs} == {"one", "two"}
    assert {run.name for run in runs} == {"mine"}


def test_a_database_that_is_none_costs_a_warning_and_the_record_is_whole(tmp_path: Path, trackio_folder):
    (trackio_folder / "broken.db").write_text("no database " * 99)
    with pytest.warns(UserWarning, match=r"^Trackio failed, the run goes on without it: DatabaseError: "):
        record(tmp_path, "tracking.to=[trackio]", "tracking.project=broken")
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 3


def test_any_number_at_once_beside_the_record(tmp_path: Path):
    tracker = record(tmp_path, "tracking.to=[csv,tensorboard,csv]")
    assert list(tracker.locations) == ["rounds", "csv", "tensorboard"]


@pytest.mark.parametrize(
    ("settings", "used", "wandb"),
    [
        ({}, ("wandb",), "offline"),
        ({"wandb": "disabled"}, (), "disabled"),
        ({"to": ("csv", "wandb"), "wandb": "online"}, ("csv", "wandb"), "online"),
        ({"to": ("csv",)}, ("csv",), "disabled"),
        ({"to": ()}, (), "disabled"),
    ],
)
def test_the_list_and_the_older_key_go_together(settings, used, wandb):
    tracking = TrackingConfig(**settings)
    assert (tracking.services, tracking.wandb_mode) == (used, wandb)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("tracking.to=[csv] tracking.wandb=online", "tracking.wandb has no effect: tracking.to does not name wandb"),
        ("tracking.to=[csv] tracking.mlflow_uri=x", "tracking.mlflow_uri has no effect: tracking.to does not name mlf"),
        ("tracking.to=[wandb,csv] tracking.wandb=disabled", "tracking.to: no wandb, as tracking.wandb = disabled"),
    ],
)
def test_settings_that_change_nothing_are_told(overrides: str, said: str):
    assert [line for line in doubtful_settings(load_config(None, overrides.split())) if line.startswith(said)]
    assert not doubtful_settings(Config(tracking=TrackingConfig(wandb="disabled")))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_what_is_not_installed_is_one_line_with_its_extra_before_any_work(name: str, monkeypatch):
    monkeypatch.setattr(services, "find_spec", lambda package: None)
    line = rf"^tracking\.to: found '{name}', which is not installed, allowed: .*pip install 'fedpft\[{name}\]'$"
    with pytest.raises(ConfigError, match=line):
        check_trackers(TrackingConfig(to=(name,)))
    check_trackers(TrackingConfig(to=("csv",)))


def test_an_unknown_tracker_is_one_line():
    with pytest.raises(ConfigError, match=r"^tracking\.to: found 'comet', allowed: a list of any of wandb, .*csv$"):
        TrackingConfig(to=("comet",))
    assert find_spec("tensorboard"), "what the others need is installed here"


class Slow:
    """A tracker whose calls wait for a sign."""

    def __init__(self, error=None):
        self.locations = {}
        self.go, self.calls, self.error = threading.Event(), [], error

    def __getattr__(self, name):
        def call(*_):
            self.go.wait(20)
            self.calls.append(name)
            if self.error and name != "fail":
                raise self.error

        return call


def test_a_slow_tracker_holds_up_nothing_and_has_all_in_order_when_it_ends():
    slow = Slow()
    queued = Queued(slow)
    for number in range(3):
        queued.log_round({"round": number})
    queued.log_clients(1, [])
    assert slow.calls == []
    slow.go.set()
    queued.finish({}, {})
    assert slow.calls == ["log_round"] * 3 + ["log_clients", "finish"]


def test_what_a_tracker_is_given_is_as_it_was_then():
    slow, seen = Slow(), []
    slow.log_round = lambda record: (slow.go.wait(20), seen.append(record))
    queued, line = Queued(slow), {"round": 1}
    queued.log_round(line)
    line["round"] = 2
    slow.go.set()
    queued.finish({}, {})
    assert seen == [{"round": 1}]


def test_too_many_waiting_calls_are_one_warning_and_points_of_a_curve_are_left_out_before():
    slow = Slow()
    tracker = Tolerated(Queued(slow, max_waiting=4, finish_seconds=0.01, fail_seconds=0.01), "Slow")
    tracker.log_round({"round": 0})
    for step in range(100):
        tracker.log_stage({"align/step": step})
    with pytest.warns(UserWarning, match=r"^Slow failed, the run goes on without it: TooSlowError: 4 records wait"):
        [tracker.log_round({"round": number}) for number in range(1, 7)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.log_round({"round": 9})
        tracker.finish({}, {})


def test_a_tracker_that_hangs_at_the_end_is_left_after_a_time():
    queued = Queued(Slow(), finish_seconds=0.01)
    queued.log_round({"round": 1})
    with pytest.raises(TooSlowError, match="2 records were not taken"):
        queued.finish({}, {})


def test_a_tracker_that_fails_in_its_thread_is_one_warning_in_the_runs_own(tmp_path: Path):
    slow = Slow(ConnectionResetError("lost\nmore"))
    tracker = Tolerated(Queued(slow), "Slow")
    tracker.log_round({"round": 1})
    slow.go.set()
    with pytest.warns(UserWarning, match=r"^Slow failed, the run goes on without it: ConnectionResetError: lost$"):
        tracker.finish({}, {})
    tracker.fail()
    assert slow.calls[0] == "log_round"
    assert "finish" not in slow.calls


def test_a_disk_that_takes_nothing_costs_a_warning_and_the_record_is_whole(tmp_path: Path):
    (tmp_path / "csv").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=r"^csv failed, the run goes on without it: "):
        record(tmp_path, "tracking.to=[csv]")
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@host.org:8443/a?key=1#x", "https://host.org:8443/***"),
        ("https://hooks.org/services/T0/secret", "https://hooks.org/***"),
        ("postgresql://u:pw@db/mlflow", "postgresql://db/***"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ("http://[half", "***"),
        ("$HOOK", "$HOOK"),
    ],
)
def test_of_an_address_only_the_host_is_shown(url: str, shown: str):
    assert shown_url(url) == shown


def test_no_secret_of_an_address_goes_to_a_tracker(tmp_path: Path):
    secrets = ["tracking.notify=https://hooks.org/s3cret", "tracking.mlflow_uri=http://me:s3cret@host/x"]
    config = load_config(None, secrets)
    assert "s3cret" not in json.dumps(vars(config.shown().tracking))
    record(tmp_path, "tracking.to=[tensorboard,csv]", *secrets)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3
    assert not [1 for content in written if b"s3cret" in content]


def test_a_wrong_address_is_refused_without_showing_it():
    with pytest.raises(
        ConfigError, match=r"^tracking\.notify: found 'ftp://host/\*\*\*', allowed: null, http"
    ) as error:
        TrackingConfig(notify="ftp://host/s3cret")
    assert "s3cret" not in str(error.value)
