import json
import subprocess
import sys
from pathlib import Path

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


def test_disabled_never_imports_wandb(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from fedpft.config import *\n"
        "from fedpft.tracking.trackers import make_trackers\n"
        "tracker = make_trackers(Config(tracking=TrackingConfig(wandb='disabled')), Path(sys.argv[1]))\n"
        "tracker.log_round({'round': 1}); tracker.finish({}, {}); sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "rounds.jsonl"]
