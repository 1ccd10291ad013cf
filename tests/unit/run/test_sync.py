import json
import shutil
from pathlib import Path

import pytest
import wandb
from typer.testing import CliRunner

from fedpft.cli.main import app
from fedpft.config import ConfigError
from fedpft.run import sync as module
from fedpft.run.sync import pending, sync
from fedpft.storage.lock import held
from fedpft.storage.output import RUN_FILE, run_record, write_json
from tests.run_folders import run_folder
from tests.wandb_server import wandb_server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """W&B's server on loopback, which the real client is told of."""
    with wandb_server() as serving:
        for name in ("CACHE", "CONFIG"):
            monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
        monkeypatch.setenv("WANDB_DATA_DIR", "")  # restored afterwards
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", serving.url)
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        wandb.teardown()  # what another test was told of
        yield serving
        wandb.teardown()


def round_line(number: int, seconds: float = 1.0) -> str:
    record = {"round": number, "clients": [0, 1], "train_loss": 1 / number, "client_losses": [0.25, 0.75]}
    record |= {"seconds": seconds, "fm": 0.1 * number, "metric_goal": "max"}
    return json.dumps(record) + "\n"


def stopped(folder: Path, rounds: str, run_id: str = "abcd1234") -> Path:
    """Write a run that has these rounds and no result."""
    fm = {"fm_digest": "f" * 32, "num_params_fm": 4}
    run_folder(folder, "name=mine", "tracking.group=g", "tracking.notify=https://hooks.org/s3cret", **fm)
    (folder / "result.json").rename(folder / "result.later")
    (folder / "rounds.jsonl").write_text(rounds)
    write_json(folder / RUN_FILE, {"run_id": run_id})
    return folder


def finish(folder: Path) -> None:
    (folder / "result.later").rename(folder / "result.json")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")


def told(*folders: Path, **options) -> list[str]:
    return [said for _, said, _ in sync(folders, **options)]


def test_after_two_resumes_there_is_one_run_with_each_round_once_and_each_artifact_once(server, tmp_path: Path):
    folder = stopped(tmp_path / "run", round_line(1) + round_line(2) + '{"round": 3, "cli')
    assert told(folder) == [f"sent rounds 1 to 2 to {server.url}/me/fedpft/runs/abcd1234"]
    # it went on from round 1, so that round 2 was done again, and was stopped again
    (folder / "rounds.jsonl").write_text(round_line(1) + round_line(2, seconds=9.0) + round_line(3))
    assert told(folder)[0].startswith("sent round 3 to ")
    (folder / "rounds.jsonl").write_text("".join(round_line(number, seconds=9.0) for number in range(1, 6)))
    finish(folder)
    assert told(folder)[0].startswith("sent rounds 4 to 5, result and adapter to ")

    (name,) = server.runs
    run = server.runs[name]
    assert name == "abcd1234"
    assert [(row["round"], row["_step"]) for row in run.history] == [(number, number) for number in range(1, 6)]
    assert [row["server/fm"] for row in run.history] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert [row["time/round_seconds"] for row in run.history] == [1, 1, 1, 9, 9], "a round that W&B has stays"
    assert {row["clients/loss_mean"] for row in run.history} == {0.5}
    assert run.exit_codes == [1, 1, 0]
    assert run.summary["result/fm"] == 0.8
    assert run.config["federated"]["rounds"] == 2
    assert "s3cret" not in json.dumps([run.config, *run.upserts])
    named = [(one["artifactCollectionName"], one["runName"], one["files"]) for one in server.artifacts]
    assert [one for one in named if "adapter" in one[0]] == [("mine-adapter", name, ["adapter_model.safetensors"])]
    assert [one for one in named if "result" in one[0]] == [("mine-result", name, ["result.json"])]
    assert [one for one in named if "fm" in one[0]] == [(f"fm-{'f' * 12}", None, [])], "used, no weights"
    assert all(one["committed"] for one in server.artifacts)
    assert b"weights" in server.uploads.values()
    described = run.upserts[0]
    assert (described["groupName"], described["displayName"], described["jobType"]) == ("g", "mine", "run")

    posts = json.dumps([run.history, run.upserts, server.artifacts])
    assert told(folder) == ["nothing new"]
    assert json.dumps([run.history, run.upserts, server.artifacts]) == posts
    assert server.unknown == []
    assert not (folder / "wandb").exists()


def test_what_was_sent_is_not_sent_twice_although_the_folders_memory_is_lost(server, tmp_path: Path):
    folder = stopped(tmp_path / "run", round_line(1) + round_line(2))
    told(folder)
    write_json(folder / RUN_FILE, {"run_id": "abcd1234"})
    (folder / "rounds.jsonl").write_text(round_line(1) + round_line(2) + round_line(3))
    told(folder)
    assert [row["round"] for row in server.runs["abcd1234"].history] == [1, 2, 3]


def test_a_sweeps_folder_is_walked_and_only_what_changed_is_sent(server, tmp_path: Path):
    for name in ("a", "b"):
        stopped(tmp_path / "sweep" / "trials" / name, round_line(1), run_id=name * 8)
    assert [said[:12] for said in told(tmp_path)] == ["sent round 1"] * 2
    with (tmp_path / "sweep/trials/b/rounds.jsonl").open("a") as file:
        file.write(round_line(2))
    assert [said[:12] for said in told(tmp_path)] == ["nothing new", "sent round 2"]
    assert {name: len(run.history) for name, run in server.runs.items()} == {"a" * 8: 1, "b" * 8: 2}


def test_a_dry_run_tells_what_would_be_sent_and_sends_and_writes_nothing(server, tmp_path: Path):
    folder = stopped(tmp_path / "run", round_line(1))
    (folder / RUN_FILE).unlink()
    before = sorted(path.name for path in folder.iterdir())
    assert told(folder, dry_run=True) == ["would send round 1"]
    assert sorted(path.name for path in folder.iterdir()) == before
    assert server.runs == {}


def test_without_a_server_the_run_is_new_afterwards_and_the_exit_code_is_1(tmp_path: Path, monkeypatch):
    folder = stopped(tmp_path / "run", round_line(1))

    def fail(*_, **__):
        raise wandb.errors.CommError("no network\nmore")

    monkeypatch.setattr(module, "WandbTracker", fail)
    monkeypatch.setattr(module, "check_tracking", lambda tracking: None)
    found = CliRunner().invoke(app, ["sync", str(folder)])
    assert found.exit_code == 1
    assert found.output.replace("\n", "").endswith("failed: CommError: no network")
    assert "sent" not in run_record(folder)
    assert pending(folder).contents == "round 1"


def test_a_run_in_progress_is_left_out(tmp_path: Path, monkeypatch):
    folder = stopped(tmp_path / "run", round_line(1))
    monkeypatch.setattr(module, "check_tracking", lambda tracking: None)
    with held(folder):
        monkeypatch.setattr("fedpft.storage.lock._held", {})  # as another process sees it
        (said,) = told(folder)
    assert said.startswith("left out: output_dir: ")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("wandb/run-20260101_000000-abcd1234/files", "left out: it was sent while it ran"),
        ("wandb/offline-run-20260101_000000-abcd1234/run-abcd1234.wandb.synced", "left out: `wandb sync` has sent it"),
    ],
)
def test_a_run_that_is_there_already_is_left_out(tmp_path: Path, place: str, said: str):
    folder = stopped(tmp_path / "run", round_line(1))
    (folder / place).mkdir(parents=True)
    assert told(folder, dry_run=True) == [said]


@pytest.mark.parametrize("place", ["checkpoints/round-0001/state.json", "wandb/offline-run-20260101_000000-deadbeef/x"])
def test_a_run_from_before_there_was_a_record_of_its_id_keeps_the_one_it_had(tmp_path: Path, place: str):
    folder = stopped(tmp_path / "run", round_line(1))
    (folder / RUN_FILE).unlink()
    (folder / place).parent.mkdir(parents=True)
    (folder / place).write_text('{"state": {\n "run_id": "deadbeef"\n}}')
    assert pending(folder).run_id == "deadbeef"


def test_a_folder_without_runs_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^RUN_OR_FOLDER: found no run in '.*', allowed: "):
        told(tmp_path, dry_run=True)


def test_a_changed_adapter_is_new(tmp_path: Path):
    folder = stopped(tmp_path / "run", round_line(1))
    finish(folder)
    sent = pending(folder).sent
    write_json(folder / RUN_FILE, {"run_id": "x", "sent": {module.destination(pending(folder).config.tracking): sent}})
    assert pending(folder).contents == ""
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"others")
    assert pending(folder).contents == "result and adapter"
    shutil.rmtree(folder)
