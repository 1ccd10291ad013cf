import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fedpft.config import Config, TrackingConfig
from fedpft.tracking.services import make_trackers
from fedpft.tracking.trackers import JsonlTracker

ROUNDS = [
    {"round": 1, "clients": [0, 3], "train_loss": 0.9, "lr": 1e-3, "seconds": 1.5, "comm/bytes_up": 4000},
    {"round": 2, "clients": [1, 2], "train_loss": 0.5, "lr": 5e-4, "seconds": 1.4, "fm": 0.8, "sub_fm": 0.7}
    | {"align": {"loss": 0.1}, "time": {"fit_seconds": 1.2}},
]


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


class Broken:
    """A tracker whose every call but the first ones fails."""

    def __init__(self, good=0):
        self.locations, self.calls, self.good = {"elsewhere": "there"}, [], good

    def __getattr__(self, name):
        def call(*_):
            self.calls.append(name)
            if len(self.calls) > self.good:
                raise ConnectionResetError("lost\nmore")

        return call


CALLS = {
    "log_round": ({"round": 1},),
    "log_clients": (1, []),
    "log_stage": ({"align/step": 1},),
    "log_figure": ("name", None),
    "finish": ({}, {}),
}


@pytest.mark.parametrize("first", CALLS)
def test_a_tracker_that_fails_costs_one_warning_and_the_record_stays_whole(tmp_path: Path, first: str):
    broken = Broken()
    tracker = make_trackers(Config(tracking=TrackingConfig(wandb="disabled")), tmp_path, more=[broken])
    with pytest.warns(UserWarning, match=r"^Broken failed, the run goes on without it: ConnectionResetError: lost$"):
        getattr(tracker, first)(*CALLS[first])
    assert broken.calls == [first, "fail"], "it may close what it has"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in [name for name in CALLS if first != "finish"]:
            getattr(tracker, name)(*CALLS[name])
        tracker.fail()
    assert broken.calls == [first, "fail"]
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) >= (first != "finish")
    assert tracker.locations["elsewhere"] == "there"


def test_a_tracker_that_fails_when_the_run_has_failed_does_not_hide_why(tmp_path: Path):
    make_trackers(Config(tracking=TrackingConfig(wandb="disabled")), tmp_path, more=[Broken()]).fail()


def test_the_record_itself_does_not_go_on_without_a_disk(tmp_path: Path, monkeypatch):
    tracker = make_trackers(Config(tracking=TrackingConfig(wandb="disabled")), tmp_path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        tracker.log_round({"round": 1})


def test_disabled_never_imports_wandb(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from fedpft.config import *\n"
        "from fedpft.tracking.services import make_trackers\n"
        "tracker = make_trackers(Config(tracking=TrackingConfig(wandb='disabled')), Path(sys.argv[1]))\n"
        "tracker.log_round({'round': 1}); tracker.finish({}, {}); sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "rounds.jsonl"]
