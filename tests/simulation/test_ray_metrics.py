"""What the cluster is told of a round, with metrics that are made up, and whether the dashboard asks for just that."""

import json
import re
from pathlib import Path

import pytest

metrics = pytest.importorskip("fedpft.simulation.metrics", reason="Ray is not installed", exc_type=ImportError)
DASHBOARD = Path(__file__).parents[2] / "ray_cluster/grafana/fedpft.json"
RECORD = {
    "round": 3, "clients": [1, 4, 5], "train_loss": 0.5, "lr": 1e-3, "comm/bytes_up": 300, "comm/bytes_down": 400,
    "time/fit_seconds": 2.0, "seconds": 2.5,
}  # fmt: skip


class FakeMetric:
    """A gauge or a counter; like Ray's, it takes plain numbers only, and counts nothing but growth."""

    def __init__(self, name, description, tag_keys):
        assert description
        assert tag_keys == ("run",)
        self.name, self.value = name, None

    def set_default_tags(self, tags):
        self.tags = tags

    def set(self, value):
        assert type(value) in (int, float)
        self.value = value

    def inc(self, value):
        assert type(value) in (int, float)
        assert value > 0
        self.value = (self.value or 0) + value


@pytest.fixture
def tracker(monkeypatch):
    monkeypatch.setattr(metrics, "Gauge", FakeMetric)
    monkeypatch.setattr(metrics, "Counter", FakeMetric)
    return metrics.RayMetrics("tiny-1a2b", lambda: 2)


def values(tracker):
    both = {**tracker._gauges, **tracker._counters}
    assert {metric.tags["run"] for metric in both.values()} == {"tiny-1a2b"}
    return {name.removeprefix("fedpft_"): m.value for name, m in both.items() if m.value is not None}


def test_a_round_sets_what_it_has_and_utilisation_is_trained_over_available_time(tracker):
    tracker.log_round(RECORD)
    tracker.log_clients(3, [{"seconds": 1.0}, {"seconds": 1.5}, {"seconds": 0.5}])
    assert values(tracker) == {
        "round": 3,
        "round_seconds": 2.5,
        "train_loss": 0.5,
        "clients_per_second": 1.5,
        "actor_utilization": 3.0 / (2 * 2.0),
        "bytes_up": 300,
        "bytes_down": 400,
    }


def test_faults_and_bytes_add_up_and_scores_stay_until_the_next_evaluation(tracker):
    tracker.log_round({"round": 0, "fm": 0.1, "sub_fm": 0.2})
    tracker.log_round(RECORD | {"dropped": [7, 9], "retries": 3})
    tracker.log_round(RECORD | {"round": 4, "clients": [], "train_loss": None, "retries": 1})
    found = values(tracker)
    assert (found["dropped_clients"], found["client_retries"], found["bytes_up"]) == (2, 4, 600)
    assert (found["fm_score"], found["sub_fm_score"], found["train_loss"]) == (0.1, 0.2, 0.5)
    assert found["clients_per_second"] == 0


def test_alignments_show_their_newest_loss(tracker):
    tracker.log_stage({"align/step": 1, "align/step_loss": 0.9})
    tracker.log_stage({"align/step": 2, "align/step_loss": 0.8})
    assert values(tracker) == {"alignment_loss": 0.8}


def test_the_dashboard_asks_for_every_metric_and_no_other():
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    asked = set(re.findall(r"ray_\w+", " ".join(expressions)))
    assert asked == {f"ray_{n}" for n in metrics.GAUGES} | {f"ray_{n}_total" for n in metrics.COUNTERS}
    assert all('{run=~"$run"}' in expression for expression in expressions)
    assert variables["run"]["query"]["query"] == "label_values(ray_fedpft_round, run)"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert not [name for name in (*metrics.GAUGES, *metrics.COUNTERS) if not name.startswith("fedpft_")]


def test_the_dashboard_s_panels_do_not_overlap():
    cells = [
        (x, y)
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
