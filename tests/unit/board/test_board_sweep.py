"""The pages of sweeps: how many trials there are, how far they got, and what the finished ones come to."""

import json
import re

import pytest
from starlette.testclient import TestClient

from fedpft.board.app import make_app
from fedpft.board.index import Index
from fedpft.board.views.sweep import stops_figure
from tests.run_folders import run_folder, sweep_folder

SETTINGS = {
    "space": {"method.retained_ratio": {"grid": [0.25, 0.5, 0.75]}},
    "seeds": [1, 2, 3, 4],
    "scheduler": "asha",
    "reduction_factor": 2,
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Look at a sweep of 12 trials by ASHA, of which 8 are finished and one was stopped after round 3."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    sweep_folder(folder / "trials")
    stopped = run_folder(folder / "trials" / "stopped", "method.retained_ratio=0.75")
    (stopped / "result.json").unlink()
    scores = [{"round": index, "fm": index / 10, "metric": "accuracy", "metric_goal": "max"} for index in (1, 2, 3)]
    (stopped / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in scores))
    (folder / "sweep.yaml").write_text(json.dumps(SETTINGS))
    index = Index([folder.parent])
    index.look()
    assert index.read(300.0)
    return index


def test_the_page_of_all_sweeps_leads_to_one_with_its_trials_and_their_comparison(index):
    board = TestClient(make_app(index, None), base_url="http://localhost:8642")
    listed = board.get("/sweeps").text
    assert "1 stopped, 8 finished, 3 not begun" in listed
    page = board.get(re.search(r"/sweep/\w+", listed)[0]).text
    assert "cannot be made" not in page
    for part in ("How far trials got", "the rounds at which ASHA decides", "Not finished yet: 1 run", "width: 66.67%"):
        assert part in page
    assert len(re.findall(r'<tr id="r-', page)) == 9


def test_a_trials_curve_ends_where_it_was_stopped_and_ashas_rungs_are_dotted(index):
    (sweep,) = index.sweeps
    figure = stops_figure(sweep, index.trials(sweep))
    (longest,) = (trace for trace in figure.data if trace.x[-1] == 3)
    assert (list(longest.y), longest.marker.symbol) == ([0.1, 0.2, 0.3], "square")
    assert {trace.name for trace in figure.data if trace.name} == {"finished", "stopped"}
    assert [line.x0 for line in figure.layout.shapes] == [1, 2]


def test_a_sweep_without_any_evaluation_has_no_figure(index):
    (sweep,) = index.sweeps
    assert stops_figure(sweep, []) is None
