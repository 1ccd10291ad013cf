"""Parts of others: found by their entry points, chosen by a setting, blamed by their name."""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from fedpft.align.public import PublicData
from fedpft.cli.main import app
from fedpft.config import Config, ConfigError, doubtful_settings, load_config
from fedpft.config.plugins import GROUP, adopt, plugins
from fedpft.construct.saliency import named_scorer
from fedpft.data.tasks.table import TASKS
from fedpft.federated.aggregate import Aggregation
from fedpft.federated.messages import ClientUpdate, RoundPlan
from fedpft.federated.server_rule import server_rule
from fedpft.interrupt import RunStoppedError
from fedpft.methods.ingredients import can_be_cached
from fedpft.metrics.table import METRICS
from fedpft.tracking.services import make_trackers

PLUGIN = '''
import numpy as np

def largest(updates, weights, config):
    """The update of the client with the most examples."""
    return updates[np.argmax(weights)]

class CountedMean:
    """A streaming mean, which counts its rounds."""
    def __init__(self, config):
        self.kind = config.kind
    def init(self, start, most, memory):
        return np.zeros(len(start)), 0.0, memory.get("rounds", np.zeros(1))
    def add(self, state, adapter, weight):
        total, weights, rounds = state
        return total + weight * adapter, weights + weight, rounds
    def finish(self, state):
        total, weights, rounds = state
        return total / weights, {"rounds": rounds + 1}

class SignStep:
    """A step of a fixed size for each number, which counts its rounds."""
    def __init__(self, config):
        self.lr = config.lr or 0.1
    def init(self, adapter):
        return {"rounds": np.zeros(1)}
    def step(self, state, adapter, update):
        return {"rounds": state["rounds"] + 1}, adapter + self.lr * np.sign(update)
'''
ROWS = """
from fedpft.data.tasks.table import TASKS
from fedpft.metrics.table import METRICS

row, metric, wrong = TASKS["rte"], METRICS["accuracy"], "a text"

def scorer(model, ffns):
    return []

class Tracker:
    locations = {"somewhere": "else"}
    def __init__(self, config, output_dir):
        self.name = config.name
    def log_round(self, record):
        raise OSError("the line is dead")
"""
FAULTY = """
import numpy as np

def shape(updates, weights, config): return updates
def number(updates, weights, config): return 1.5
def nan(updates, weights, config): return updates[0] * np.nan
def integers(updates, weights, config): return np.zeros(3, int)
def raises(updates, weights, config): raise KeyError("no such thing")
def spoils(updates, weights, config):
    updates[0] = 0
    return updates[0]
class Short:
    def __init__(self, config): pass
    def init(self, start, most, memory): return None
    def add(self, state, adapter, weight): return None
    def finish(self, state): return np.zeros(2), {}
class Unfinished(Short):
    def add(self, state, adapter, weight): raise ValueError("cannot add")
class Step:
    def __init__(self, config): self.lr = config.lr
    def init(self, adapter): return {"m": 0.0}
class Shy:
    def __init__(self): pass
not_a_function = 3
"""
P = 3
START = np.ones(P, np.float32)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of others, installed: a module and its entry points."""
    (tmp_path / "somebodys_parts.py").write_text(PLUGIN)
    (tmp_path / "faulty_parts.py").write_text(FAULTY)
    (tmp_path / "rows_of_others.py").write_text(ROWS)
    info = tmp_path / "somebodys_parts-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-parts\nVersion: 1.2\n")
    lines = ["aggregator.largest = somebodys_parts:largest", "server_optimiser.sign = somebodys_parts:SignStep"]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield info / "entry_points.txt"
    for name in ("somebodys_parts", "faulty_parts", "rows_of_others"):
        sys.modules.pop(name, None)


def one_round(config, arrays=None):
    """Return the adapter, and what is remembered, after a round of two clients."""
    plan = RoundPlan(round_index=1, lr=0.1, adapter=START, count_activations=False)
    rule = server_rule(config.federated, (("head", (P,)),))
    aggregation = Aggregation(plan, [0, 1], {0: 1, 1: 1}, "weighted", rule, arrays or {})
    for client_id, change in enumerate(([1, -1, 2], [3, 3, 3])):
        adapter = START + np.array(change, np.float32)
        metrics = {"loss": 1.0, "seconds": 1.0}
        aggregation.add(ClientUpdate(client_id=client_id, num_examples=9 - client_id, adapter=adapter, metrics=metrics))
    return aggregation.next_adapter()


@pytest.mark.parametrize("kind", ["largest", "somebodys_parts:largest"])
def test_a_rule_of_others_is_chosen_by_its_place_or_its_name(package, kind):
    config = load_config(None, [f"federated.aggregator.kind={kind}"])
    assert one_round(config)[0].tolist() == [2, 0, 3]
    assert not any("federated.aggregation" in line for line in doubtful_settings(config))


@pytest.mark.parametrize("kind", ["sign", "somebodys_parts:SignStep"])
def test_a_server_optimiser_of_others_gets_its_settings_and_what_it_remembered(package, kind):
    config = load_config(None, [f"federated.server.kind={kind}", "federated.server.lr=0.5"])
    adapter, arrays = one_round(config)
    assert adapter.tolist() == [1.5, 1.5, 1.5]
    assert one_round(config, arrays)[1]["server/rounds"].tolist() == [2]


def test_an_aggregator_of_others_may_be_a_class_that_streams_and_remembers(package):
    config = load_config(None, ["federated.aggregator.kind=somebodys_parts:CountedMean"])
    adapter, arrays = one_round(config)
    assert adapter == pytest.approx((9 * np.array([2, 0, 3]) + 8 * np.array([4, 4, 4])) / 17)
    assert one_round(config, arrays)[1]["aggregator/rounds"].tolist() == [2]


@pytest.mark.parametrize(("name", "why"), [("Short", r"of shape \(2,\)"), ("Unfinished", "ValueError: cannot add")])
def test_what_such_a_class_gets_wrong_is_one_line_with_its_name(package, name, why):
    config = load_config(None, [f"federated.aggregator.kind=faulty_parts:{name}"])
    with pytest.raises(RunStoppedError, match=rf"^federated\.aggregator\.kind = faulty_parts:{name} failed: .*{why}"):
        one_round(config)


def test_the_command_lists_own_parts_and_those_of_others_and_imports_none(package):
    result = CliRunner().invoke(app, ["plugins", "--format", "json"])
    parts = {(part["kind"], part["name"]): part for part in json.loads(result.stdout)["parts"]}
    found = parts["aggregator", "largest"]
    assert (found["place"], found["package"]) == ("somebodys_parts:largest", "somebodys-parts 1.2")
    assert parts["aggregator", "krum"]["place"] == "fedpft"
    assert parts["server_optimiser", "sign"]["setting"] == "federated.server.kind"
    assert "somebodys_parts" not in sys.modules
    text = CliRunner().invoke(app, ["plugins"]).stdout
    assert "trimmed_mean" in text
    assert "somebodys" in text


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("shape", r"returned float32 of shape \(2, 3\), expected floats of shape \(3,\)"),
        ("number", r"returned float64 of shape \(\), expected floats of shape \(3,\)"),
        ("integers", "returned int64 of shape"),
        ("nan", "returned NaN or infinite values"),
        ("raises", r"KeyError: 'no such thing' \(faulty_parts.py, line 8\)"),
        ("spoils", r"read-only \(faulty_parts.py, line 10\)"),
        ("not_a_function", "not callable"),
    ],
)
def test_what_a_rule_of_others_gets_wrong_is_one_line_with_its_name(package, name, why):
    kind = f"faulty_parts:{name}"
    config = load_config(None, [f"federated.aggregator.kind={kind}"])
    with pytest.raises(RunStoppedError, match=rf"^federated\.aggregator\.kind = {kind} failed: .*{why}") as error:
        one_round(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("nowhere:Step", "ModuleNotFoundError: No module named 'nowhere'"),
        ("faulty_parts:Nothing", "has no attribute 'Nothing'"),
        ("faulty_parts:Shy", "which fails: TypeError"),
    ],
)
def test_a_part_that_cannot_be_made_is_refused_before_the_run(package, kind, why):
    config = load_config(None, [f"federated.server.kind={kind}"])
    with pytest.raises(ConfigError, match=rf"^federated\.server\.kind: found '{kind}'.*{why}"):
        server_rule(config.federated, ())


def test_what_an_optimiser_of_others_remembers_must_be_arrays(package):
    config = load_config(None, ["federated.server.kind=faulty_parts:Step"])
    with pytest.raises(RunStoppedError, match=r"kind = faulty_parts:Step failed: TypeError: .* a dict of NumPy"):
        one_round(config)


def test_tables_adopt_rows_of_others_and_no_other_things(package):
    tasks, metrics = dict(TASKS), dict(METRICS)
    adopt("task", "rows_of_others:row", tasks)
    adopt("metric", "rows_of_others:metric", metrics)
    adopt("metric", "nobodys", metrics)
    assert tasks["rows_of_others:row"] is TASKS["rte"]
    assert set(metrics) - set(METRICS) == {"rows_of_others:metric"}
    with pytest.raises(ConfigError, match=r"^task\.name: found 'rows_of_others:wrong', a str, allowed: a .*TaskRow"):
        adopt("task", "rows_of_others:wrong", tasks)


def test_a_scorer_of_others_is_taken_and_its_sub_fm_is_never_cached(package):
    config = load_config(None, ["method.scorer=rows_of_others:scorer"])
    assert named_scorer(config.method.scorer, 0, list).__name__ == "scorer"
    assert not can_be_cached(PublicData(dataset=None, collate=None, identity=dict), config)
    assert can_be_cached(PublicData(dataset=None, collate=None, identity=dict), Config())


def test_a_tracker_of_others_gets_the_numbers_and_stops_no_run(package, tmp_path):
    config = load_config(None, ["tracking.also=[rows_of_others:Tracker]", "tracking.wandb=disabled"])
    tracker = make_trackers(config, tmp_path)
    with pytest.warns(UserWarning, match="rows_of_others:Tracker.*the line is dead"):
        tracker.log_round({"round": 1})
    assert '"round": 1' in (tmp_path / "rounds.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"^tracking\.also: found 'nobodys', allowed: module:Class or a plug-in's"):
        load_config(None, ["tracking.also=[nobodys]"])


@pytest.mark.parametrize("line", ["my_rule = a:b", "aggregators.x = a:b", "aggregator.a-b = a:b"])
def test_an_entry_point_with_another_form_is_one_line(package, line):
    package.write_text(f"[{GROUP}]\n{line}\n")
    with pytest.raises(ConfigError, match=r"^entry point of somebodys-parts 1\.2 in fedpft\.plugins: found .* allowed"):
        plugins()


@pytest.mark.parametrize("key", ["federated.aggregator.kind", "federated.server.kind", "method.name", "method.scorer"])
def test_a_name_that_nobody_has_is_refused(key):
    with pytest.raises(ConfigError, match=rf"^{key}: found 'nobodys', allowed: .* plug-in's name"):
        load_config(None, [f"{key}=nobodys"])
    assert Config()
