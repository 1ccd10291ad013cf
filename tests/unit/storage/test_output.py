import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedpft.config import ConfigError
from fedpft.storage.output import ROUNDS_FILE, check_claimable, check_writable, claim_output_dir, cut_rounds, write_json


def test_a_new_folder_is_created_with_its_parents(tmp_path):
    assert claim_output_dir(tmp_path / "a/b").is_dir()


def test_runs_move_aside_in_order_and_keep_their_files(tmp_path):
    for number in range(3):
        folder = claim_output_dir(tmp_path / "run")
        assert not any(folder.iterdir())
        (folder / ROUNDS_FILE).write_text(f"run {number}")
    kept = [(tmp_path / name / ROUNDS_FILE).read_text() for name in ("run.1", "run.2", "run")]
    assert kept == ["run 0", "run 1", "run 2"]


@pytest.mark.parametrize("names", [["notes.txt"], ["config.yaml"], ["other_run/rounds.jsonl", "third/rounds.jsonl"]])
def test_a_folder_that_is_no_runs_is_refused_and_not_touched(tmp_path, monkeypatch, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path, Path()):
        with pytest.raises(
            ConfigError, match=rf"found '.*' with {names[0].partition('/')[0]}.* allowed: a new or empty"
        ):
            claim_output_dir(folder)
    assert sorted(tmp_path.rglob("*")) == before
    assert not tmp_path.with_name(f"{tmp_path.name}.1").exists()


def test_only_a_runs_own_entries_move_aside_and_it_is_said(tmp_path):
    folder, said = tmp_path / "run", []
    for name in ("notes.txt", "other/result.json", "wandb/run", "config.yaml", ROUNDS_FILE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    claim_output_dir(folder, say=said.append)
    moved = ["config.yaml", ROUNDS_FILE, "wandb"]
    assert sorted(path.name for path in (tmp_path / "run.1").iterdir()) == moved
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "other"]
    unsent = "; `fedpft sync` sends it to W&B, `wandb sync` leaves its artifacts out"
    assert said == [f"{folder}: the run that was there is now {folder}.1; not moved: notes.txt, other{unsent}"]


def test_what_a_file_system_or_a_desktop_puts_into_a_folder_does_not_count(tmp_path):
    for name in (".DS_Store", "lost+found", ".nfs00000001"):
        (tmp_path / name).touch()
    check_claimable(tmp_path)


def test_a_run_that_cannot_be_moved_is_known_before_the_run(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ROUNDS_FILE).touch()
    real = Path.stat

    def stat(path, **options):
        found = real(path, **options)
        return SimpleNamespace(st_dev=found.st_dev + 1, st_mode=found.st_mode) if path.name == "run" else found

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(
        ConfigError, match="with a run that cannot be moved to another file system, allowed: a folder in"
    ):
        check_claimable(tmp_path / "run")


def test_looking_whether_a_folder_is_writable_touches_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "a/b")
    with pytest.raises(ConfigError, match=r"output_dir: found .*file/below"):
        check_writable(tmp_path / "file/below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_named_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="File name too long"):
        check_writable(tmp_path / ("x" * 300))


def test_a_full_disk_is_noticed_before_the_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    with pytest.raises(ConfigError, match=r"output_dir: found .*; No space left on device"):
        check_writable(tmp_path)


@pytest.mark.parametrize("name", ["adapter", "result.json"])
def test_what_a_new_run_would_overwrite_is_refused_unless_a_run_left_it(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"output_dir: found .* with {name} but no rounds\.jsonl, allowed: a new"):
        check_claimable(tmp_path)
    check_writable(tmp_path)
    (tmp_path / ROUNDS_FILE).write_text("")
    check_claimable(tmp_path)
    check_claimable(tmp_path / "new")


def test_a_path_that_cannot_be_a_folder_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ConfigError, match=r"^output_dir: found .*allowed: a folder that can be written") as error:
            claim_output_dir(path)
        assert "\n" not in str(error.value)
    assert (tmp_path / "file").is_file()


def record(round_index):
    return json.dumps({"round": round_index, "align": {"loss": 0.5}}) + "\n"


@pytest.mark.parametrize(
    "rest", ["", "{broken}\n", "\x00\n", record(3), record(3) + record(4), record(3)[:9], record(3) + record(4)[:-1]]
)
def test_rounds_are_cut_after_those_done_half_a_line_too(tmp_path, rest):
    (tmp_path / ROUNDS_FILE).write_text(record(1) + record(2) + rest)
    cut_rounds(tmp_path, 2)
    assert (tmp_path / ROUNDS_FILE).read_text() == record(1) + record(2)
    assert [path.name for path in tmp_path.iterdir()] == [ROUNDS_FILE]


def test_rounds_that_are_lost_cost_a_warning(tmp_path):
    (tmp_path / ROUNDS_FILE).write_text(record(1))
    with pytest.warns(UserWarning, match="found 1 lines of 2 rounds done"):
        cut_rounds(tmp_path, 2)
    assert (tmp_path / ROUNDS_FILE).read_text() == record(1)


def test_json_replaces_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    for value in (1, 2):
        write_json(path, {"value": value, "nested": {"x": [1.5]}})
    assert json.loads(path.read_text()) == {"value": 2, "nested": {"x": [1.5]}}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    assert json.loads(path.read_text()) == {"value": 1}
