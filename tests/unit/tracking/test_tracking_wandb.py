import json
import logging
import resource
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb

from fedpft.cli.environment import hush_libraries
from fedpft.config import Config, ConfigError, TrackingConfig, load_config
from fedpft.report.fidelity import heat_map
from fedpft.tracking.names import kept_in_summary, logged_metrics
from fedpft.tracking.services import make_trackers
from fedpft.tracking.wandb import check_tracking
from fedpft.tracking.wandb_variables import NOT_FOLLOWED
from tests.wandb_file import OfflineRun

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


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # restored afterwards
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "run"


def record_run(output: Path, *overrides: str, result: dict[str, Any] | None = None) -> OfflineRun:
    """Record a short offline run and read it back."""
    tracker = make_trackers(load_config(None, ["name=my run", "tracking.wandb=offline", *overrides]), output)
    tracker.log_stage({"align/step": 1, "align/step_loss": 0.7})
    tracker.log_round(METERED)
    tracker.log_figure("fidelity/heat_map", heat_map([METERED]))
    for record in ROUNDS:
        tracker.log_round(record)
    tracker.log_clients(2, CLIENTS)
    adapter = output / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    tracker.finish({"fm": 0.8, "versions": {"torch": "2"}, **(result or {})}, {"adapter": adapter, "sub_fm": output})
    wandb.teardown()  # what the end of the process does: the service writes its file to the end
    return OfflineRun.in_folder(Path(tracker.locations["wandb"]))


def test_offline_run_holds_everything(output: Path, capfd: pytest.CaptureFixture):
    found = record_run(output)
    assert capfd.readouterr() == ("", "")
    assert len((output / "rounds.jsonl").read_text().splitlines()) == len(ROUNDS)
    assert found.folder.parent == output / "wandb"
    history = found.history
    expected = {"round": 2, "server/fm": 0.8, "server/sub_fm": 0.7, "server/train_loss": 0.5, "server/lr": 5e-4}
    expected |= {"server/align_loss": 0.1, "align/step": 1, "align/step_loss": 0.7, "comm/bytes_up": 4000}
    expected |= {"time/round_seconds": 1.4, "time/fit_seconds": 1.2, "clients/loss_min": 0.4, "clients/loss_max": 0.6}
    assert history.items() >= expected.items()
    expected_of_layers = {"fidelity/hidden_error/layer_00": 0.5, "fidelity/hidden_error/layer_01": 0.25}
    expected_of_layers |= {"fidelity/gradient_cosine/layer_00": 0.75, "fidelity/gradient_norm_ratio/layer_01": 2.0}
    totals = {"fidelity/hidden_error": 0.25, "fidelity/gradient_norm_ratio": 1.75, "server/leakage_gap": -0.1}
    assert history.items() >= (expected_of_layers | totals | {"time/fidelity_seconds": 3.0}).items()
    assert not {"fidelity/gradient_cosine", "fidelity/gradient_cosine/layer_01"} & history.keys(), "undefined"
    assert history["fidelity/heat_map/_type"] == "plotly-file"
    assert (found.folder / "files" / history["fidelity/heat_map/path"]).stat().st_size > 0
    assert history["clients/loss_mean"] == pytest.approx(0.5)
    assert history["clients/table/_type"] == "incremental-table-file"
    assert found.summary["result/fm"] == 0.8
    assert found.config["federated"]["num_clients"] == Config().federated.num_clients


def test_metrics_lie_on_their_axes_and_the_summary_keeps_what_is_best_or_a_mean_or_peak(output: Path):
    found = record_run(output)
    steps = {name: metric.step_metric for name, metric in found.metrics.items()}
    expected = {"server/*": "round", "server/fm": "round", "fidelity/*": "round", "align/*": "align/step"}
    assert steps.items() >= (expected | {"align/step_loss": "align/step"}).items()
    kept = {"server/fm": {"max": 0.8}, "server/train_loss": {"min": 0.5}, "fidelity/hidden_error": {"min": 0.25}}
    kept |= {"time/round_seconds": {"mean": pytest.approx(1.45)}, "align/step_loss": {"min": 0.7}}
    kept |= {"server/lr": 5e-4, "fidelity/hidden_error/layer_00": {"min": 0.5}, "comm/bytes_up": {"mean": 4000}}
    assert {name: found.summary[name] for name in kept} == kept


@pytest.mark.parametrize("goal", ["max", "min"])
def test_the_summary_keeps_the_best_of_every_metric_by_its_own_direction(goal: str):
    expected = {"server/fm": goal, "server/sub_fm": goal, "metrics/fm/accuracy": "max", "metrics/fm/loss": "min"}
    expected |= {"metrics/sub_fm/perplexity": "min", "metrics/fm/mismatched/matthews": "max", "server/lr": None}
    expected |= {"metrics/fm/mse": "min", "server/leakage_gap": None, "memory/driver_rss_bytes": "max"}
    assert {name: kept_in_summary(name, goal) for name in expected} == expected


def test_a_run_has_its_group_a_job_type_and_tags_that_wandb_takes(output: Path):
    long = "x" * 80
    found = record_run(output, "tracking.group=sizes", f"tracking.tags=[mine,{long},fedpft]", "task.name=sst2").run
    assert (found.run_group, found.job_type, found.display_name) == ("sizes", "run", "my run")
    assert list(found.tags) == ["mine", long[:64], "fedpft", "sst2"]


def test_artifacts_tell_the_adapters_descent_and_hold_no_weights_of_fm_or_sub_fm(output: Path):
    fm, sub_fm = "f" * 32, "5" * 32
    result = {"fm_digest": fm, "construction": {"digest": sub_fm, "key": None}, "method": "fedpft"}
    result |= {"num_params_fm": 4, "num_params_sub_fm": 2, "compression_ratio": 2.0}
    artifacts = record_run(output, "method.retained_ratio=0.25", result=result).artifacts
    assert [found.name for found in artifacts] == [f"fm-{fm[:12]}", f"sub-fm-{sub_fm[:12]}", "my-run-adapter"]
    assert [found.type for found in artifacts] == ["fm", "sub-fm", "model"]
    assert [found.use_after_commit for found in artifacts] == [True, True, False], "what the run used"
    assert [found.user_created for found in artifacts] == [True, False, False], "what the run did not make"
    described = [json.loads(found.metadata) for found in artifacts]
    assert [each.get("digest") for each in described] == [fm, sub_fm, None]
    assert described[1].items() >= {"fm": fm, "retained_ratio": 0.25, "method": "fedpft"}.items()
    assert described[2] == {"fm": fm, "sub_fm": sub_fm}
    files = [[(entry.ref, entry.local_path) for entry in found.manifest.contents] for found in artifacts]
    assert files[:2] == [[(f"fedpft://fm/{fm}", "")], [(f"fedpft://sub-fm/{sub_fm}", "")]]
    assert [Path(path).name for _, path in files[2]] == ["adapter_model.safetensors"]


def test_what_is_sent_lies_in_the_wandb_folder_and_the_runs_files_are_found_wherever_that_is(output: Path):
    found = record_run(output)
    (adapter,) = found.artifacts
    paths = [Path(entry.local_path) for entry in adapter.manifest.contents]
    assert all(path.is_relative_to(found.folder) and path.read_bytes() == b"weights" for path in paths)
    saved = [entry.path for record in found.records if record.HasField("files") for entry in record.files.files]
    assert "adapter/adapter_model.safetensors" in saved, "by its place in the folder"
    moved = found.folder.rename(output.with_name("elsewhere"))
    assert (moved / "files/adapter/adapter_model.safetensors").read_bytes() == b"weights"


def test_a_wandb_that_dies_costs_one_warning(output: Path, recwarn: pytest.WarningsRecorder, capfd):
    tracker = make_trackers(load_config(None, ["tracking.wandb=offline"]), output)
    tracker.log_round(ROUNDS[0])
    for process in psutil.Process().children(recursive=True):
        if "wandb" in Path(process.exe()).name:
            process.kill()
            process.wait()
    for record in ROUNDS[1:] * 3:
        tracker.log_round(record)
    tracker.finish({"fm": 0.5}, {})
    said = [str(warning.message) for warning in recwarn if "Weights" in str(warning.message)]
    assert len(said) == 1
    assert said[0].startswith("Weights & Biases failed, the run goes on without it: ")
    assert len((output / "rounds.jsonl").read_text().splitlines()) == 1 + 3 * len(ROUNDS[1:])
    assert "Traceback" not in capfd.readouterr().err


def test_a_wandb_on_a_full_disk_costs_one_warning(output: Path, recwarn: pytest.WarningsRecorder, capfd, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", True)  # restored afterwards
    hush_libraries()
    wandb.teardown()  # its process is to inherit the limit
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        tracker = make_trackers(load_config(None, ["tracking.wandb=offline"]), output)
        for _ in range(4):
            tracker.log_round(ROUNDS[0])
            tracker.log_figure("fidelity/heat_map", heat_map([METERED]))
        adapter = output / "adapter"
        adapter.mkdir()
        tracker.finish({"fm": 0.5, "long": "x" * 4000}, {"adapter": adapter})
        wandb.teardown()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    said = [str(warning.message) for warning in recwarn if "Weights" in str(warning.message)]
    assert len(said) == 1, said
    assert len((output / "rounds.jsonl").read_text().splitlines()) == 4
    assert "Traceback" not in capfd.readouterr().err


def test_a_wandb_that_cannot_begin_costs_one_warning(output: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(**_):
        raise OSError("~/.config is a file")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.warns(UserWarning, match=r"^Weights & Biases failed, the run goes on without it: OSError: ~/\.config"):
        tracker = make_trackers(load_config(None, ["tracking.wandb=offline"]), output)
    tracker.log_round(ROUNDS[0])
    assert list(tracker.locations) == ["rounds"]


def test_artifacts_that_cannot_be_made_cost_a_warning_and_the_run_is_whole(output: Path, monkeypatch):
    def fail(*_, **__):
        raise PermissionError("~/.cache")

    monkeypatch.setattr("fedpft.tracking.wandb_artifacts._copy", fail)
    with pytest.warns(UserWarning, match=r"its run has not all artifacts: PermissionError: ~/\.cache"):
        found = record_run(output)
    assert found.summary["result/fm"] == 0.8
    assert next(record.exit.exit_code for record in found.records if record.HasField("exit")) == 0


def test_out_of_reach_a_run_is_recorded_offline(output: Path, monkeypatch: pytest.MonkeyPatch):
    init, modes = wandb.init, []

    def fail(*, mode, **settings):
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("no network\nmore")
        return init(mode=mode, **settings)

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.warns(UserWarning, match=r"^Weights & Biases: no network; recorded offline, send it later: wandb sy"):
        tracker = make_trackers(load_config(None, ["tracking.wandb=online"]), output)
    tracker.finish({}, {})
    assert modes == ["online", "offline"]


@pytest.mark.parametrize(
    ("mode", "variables", "named"),
    [
        ("offline", {"WANDB_MODE": "disabled"}, ["WANDB_MODE=disabled (tracking.wandb)"]),
        ("offline", {"WANDB_DISABLED": "true", "WANDB_PROJECT": "x"}, ["WANDB_DISABLED=true", "(tracking.project)"]),
        ("disabled", {"WANDB_MODE": "online", "WANDB_PROJECT": "x"}, ["WANDB_MODE=online (tracking.wandb)"]),
        ("offline", {"WANDB_MODE": "offline", "WANDB_DISABLED": "false"}, []),
        ("disabled", {"WANDB_DISABLED": "true", "WANDB_NAME": "x"}, []),
    ],
)
def test_wandbs_own_variables_that_are_not_followed_are_named(monkeypatch, recwarn, mode, variables, named):
    for name in NOT_FOLLOWED:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_tracking(TrackingConfig(wandb=mode))
    said = " ".join(str(warning.message) for warning in recwarn)
    assert all(part in said for part in named)
    assert bool(said) == bool(named)


def test_an_adapter_tuned_on_the_fm_itself_descends_from_it_alone(output: Path):
    result = {"fm_digest": "f" * 32, "construction": {}, "method": "full", "num_params_fm": 4}
    artifacts = record_run(output, "method.name=full", result=result).artifacts
    assert [found.type for found in artifacts] == ["fm", "model"]
    assert json.loads(artifacts[1].metadata) == {"fm": "f" * 32}


def test_every_metric_of_a_record_has_a_name_of_its_own():
    metrics = {"fm": {"f1": 0.5, "mismatched/f1": 0.25}, "sub_fm": {"f1": 0.75, "mismatched/f1": 0.0}}
    record = {"round": 1, "fm": 0.5, "metric": "f1", "metric_goal": "max", "metrics": metrics}
    assert logged_metrics(record) == {
        "server/fm": 0.5,
        "metrics/fm/f1": 0.5,
        "metrics/fm/mismatched/f1": 0.25,
        "metrics/sub_fm/f1": 0.75,
        "metrics/sub_fm/mismatched/f1": 0.0,
    }


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
