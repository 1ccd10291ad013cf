import errno
import json

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


def test_a_folder_without_a_run_is_used_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert claim_output_dir(tmp_path) == tmp_path
    assert (tmp_path / "notes.txt").read_text() == "mine"


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
