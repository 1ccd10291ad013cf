"""Runs of other tools that the real client of W&B wrote offline."""

import pytest
import wandb
from typer.testing import CliRunner

from fedpft.cli.main import app
from fedpft.config import ConfigError
from fedpft.report.compare.comparison import compare
from fedpft.report.compare.elsewhere import elsewhere_note
from fedpft.tracking.wandb_files import read_records, read_wandb_files
from tests.run_folders import run_folder

LONG = "long " * 20_000
"""More than a block of the file holds."""


def logged(folder, run_id, rows, exit_code=0, **config):
    quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True)
    about = {"mode": "offline", "project": "p", "id": run_id, "resume": "allow", "config": {"seed": 1, **config}}
    run = wandb.init(**about, dir=folder, settings=quiet, reinit="create_new")
    for row in rows:
        run.log(row)
    run.finish(exit_code=exit_code)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Folder of a tool with one run that was resumed, and one that failed."""
    folder = tmp_path_factory.mktemp("theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        for name in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / name))
        logged(folder, "one", [{"accuracy": 0.5}, {"loss": 2.0}, {"accuracy": 0.6}], text=LONG, optim={"lr": 0.1})
        (first,) = (folder / "wandb").glob("offline-run-*-one")
        first.rename(first.with_name("offline-run-0-one"))  # two within a second have one name
        logged(folder, "one", [{"accuracy": 0.75}], late=3)
        logged(folder, "broken", [{"accuracy": 0.5}], exit_code=1)
        wandb.teardown()
    return folder


@pytest.fixture
def ours(tmp_path):
    return [run_folder(tmp_path / f"ours_{seed}", fm=0.8 + seed / 100, seed=seed) for seed in (1, 2)]


def test_what_was_resumed_is_one_run_with_settings_summary_and_a_curve_that_goes_on(theirs):
    broken, one = read_wandb_files(theirs / "wandb", "accuracy")
    assert (one.path, one.name, one.state) == ("p/one", "one", "finished")
    assert one.config == {"seed": 1, "text": LONG, "optim": {"lr": 0.1}, "late": 3}
    assert (one.summary["accuracy"], one.summary["loss"]) == (0.75, 2)
    assert one.curve == [(0, 0.5), (2, 0.6), (3, 0.75)]
    assert (broken.path, broken.state) == ("p/broken", "failed")
    assert broken.curve == [(0, 0.5)], "W&B's link to its latest run is no other run"
    assert read_wandb_files(theirs, "nothing")[1].curve == []


def test_a_folder_of_theirs_stands_beside_ours_and_what_did_not_finish_is_left_out(theirs, ours):
    found = compare(ours, wandb=[str(theirs), str(theirs / "wandb")])
    (group,) = [group for group in found.groups if group.is_elsewhere]
    assert [(str(run.folder), run.seed, run.value) for run in group.runs] == [("p/one", 1, 0.75)]
    assert "W&B p" in group.label
    assert group.label in elsewhere_note(found.groups)
    assert [(str(left.folder), left.reason) for left in found.left_out] == [
        ("p/broken", "not finished: failed, says W&B")
    ]


def test_the_command_takes_a_folder(theirs, ours, tmp_path):
    words = ["compare", *map(str, ours), "--wandb", str(theirs), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "of another tool, read from W&B" in done.output


def test_of_a_file_that_is_cut_off_what_is_whole_is_read_and_it_has_not_finished(theirs, tmp_path):
    file = next((theirs / "wandb" / "offline-run-0-one").glob("*.wandb"))
    whole, records = file.read_bytes(), list(read_records(file))
    assert [record.num for record in records] == sorted(record.num for record in records)
    cut = tmp_path / file.name
    for size in (7, 9, 20, 2**15 - 3, 2**15 + 3, len(whole) - 2000, len(whole) - 3, len(whole)):
        cut.write_bytes(whole[:size])
        read = list(read_records(cut))
        assert read == records[: len(read)], size
    cut.write_bytes(whole[:-3])
    assert read_wandb_files(tmp_path, "accuracy")[0].state == "running or killed"


@pytest.mark.parametrize(
    "content", [b"", b"PK and more", b":W&B\xe1\xbe\x00" + b"\0" * 4 + b"\x04\0\x01\xff\xff\xff\xff"]
)
def test_a_folder_without_files_of_theirs_and_a_damaged_one_are_one_line(tmp_path, ours, content):
    with pytest.raises(ConfigError, match=r"^--wandb: found '[^\n]*' without W&B's files, allowed: [^\n]*$"):
        compare(ours, wandb=[str(tmp_path / "ours_1")])
    (tmp_path / "run-x.wandb").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^--wandb: found '[^\n]*x\.wandb', which is no file of W&B's: [^\n]*$"):
        compare(ours, wandb=[str(tmp_path)])
