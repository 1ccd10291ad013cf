import json
import math
from dataclasses import replace

import pytest

from fedpft.config import StopConfig
from fedpft.federated.driver import ServerState
from fedpft.federated.early_stop import EarlyStop
from tests.unit.federated.test_driver import START, FakeMethod, driver, start


def watched(metric, values, **config):
    """Return the states after evaluations that found these values, up to the one that stops."""
    stop, states = EarlyStop(config=StopConfig(**config), metric=metric), [{}]
    for index, value in enumerate(values, start=1):
        states.append(stop.watch(states[-1], index, {"metrics": {"fm": {metric: value}}}))
        if "reason" in states[-1]:
            break
    return states[1:]


def end(*arguments, **config):
    """Return after how many evaluations a run stops and why; None: it does not."""
    states = watched(*arguments, **config)
    return (len(states), states[-1]["reason"]) if "reason" in states[-1] else None


@pytest.mark.parametrize(
    ("metric", "values", "config", "expected"),
    [
        ("accuracy", [0.5, 0.6, 0.6, 0.59, 0.7], {"patience": 2}, (4, "patience")),
        ("accuracy", [0.5, 0.6, 0.6, 0.61, 0.6], {"patience": 2}, None),
        ("loss", [0.5, 0.6, 0.6], {"patience": 2}, (3, "patience")),
        ("loss", [0.5, 0.4, 0.3, 0.2], {"patience": 1}, None),
        ("accuracy", [0.5, 0.51, 0.52, 0.6], {"patience": 2, "min_delta": 0.05}, (3, "patience")),
        ("loss", [0.5, 0.49, 0.44, 0.45], {"patience": 2, "min_delta": 0.05}, None),
        ("accuracy", [0.5, 0.8, 0.7], {"target": 0.75}, (2, "target")),
        ("accuracy", [0.5, 0.75], {"target": 0.75}, (2, "target")),
        ("perplexity", [9.0, 7.5, 6.9], {"target": 7.0}, (3, "target")),
        ("accuracy", [0.5, 0.4, 0.9], {"target": 0.75, "patience": 1}, (2, "patience")),
        ("mismatched/accuracy", [0.5, 0.4], {"patience": 1}, (2, "patience")),
        ("pearson", [math.nan, 0.1, math.nan, math.nan], {"patience": 2}, (4, "patience")),
        ("mse", [math.nan, math.nan], {"target": 1.0}, None),
    ],
)
def test_a_run_stops_after_its_patience_or_at_its_target_whichever_way_the_metric_is_better(
    metric, values, config, expected
):
    assert end(metric, values, **config) == expected


def test_the_best_is_what_others_had_to_beat_and_the_state_is_plain_json():
    state = watched("accuracy", [0.5, 0.6, 0.55, 0.6], patience=2)[-1]
    assert state == {"best": 0.6, "round": 2, "num_worse": 2, "reason": "patience"}
    assert json.loads(json.dumps(state)) == state
    stop = EarlyStop(config=StopConfig(patience=2, min_delta=0.01), metric="accuracy")
    assert stop.record({"best": 0.6, "round": 2, "num_worse": 1}, 9) == {}
    limits = {"patience": 2, "min_delta": 0.01, "target": None}
    assert stop.record(state, 9) == {"stopped": {"metric": "accuracy", **state, **limits, "planned_rounds": 9}}


def stopping_driver(values, **config):
    """Return a driver that evaluates every second of 9 rounds and finds these values, by round."""
    made, _ = driver(rounds=9, evaluation_interval=2, method=FakeMethod(rounds_with_counts=(4,)))

    def evaluate(adapter):
        value = values[made.pool.plans[-1].round_index]
        return {"fm": value, "metrics": {"fm": {"accuracy": value}}}

    return replace(made, evaluate=evaluate, stop=EarlyStop(config=StopConfig(**config), metric="accuracy"))


def test_a_stopped_run_ends_with_an_evaluation_and_goes_on_from_any_checkpoint_to_the_same_end():
    values = {2: 0.5, 4: 0.7, 6: 0.6, 8: 0.65, 9: 0.9}
    states = []
    made = replace(stopping_driver(values, patience=2), checkpoint=states.append)
    final = made.run(start())
    assert final.rounds_done == 8
    assert [record.get("stopped") for record in made.tracker.records] == [None] * 7 + ["patience"]
    assert (final.last_evaluation["fm"], final.best["fm"]) == (0.65, 0.7)
    for state in states:
        saved = json.loads(json.dumps({key: value for key, value in vars(state).items() if key != "adapter"}))
        again = stopping_driver(values, patience=2)
        resumed = again.run(ServerState(adapter=state.adapter, **saved))
        assert (resumed.adapter.tobytes(), resumed.stop) == (final.adapter.tobytes(), final.stop)
        assert len(again.tracker.records) == 8 - state.rounds_done


def test_the_last_round_that_was_planned_stops_nothing():
    made = stopping_driver({2: 0.1, 4: 0.1, 6: 0.1, 8: 0.1, 9: 0.9}, target=0.8)
    final = made.run(start())
    assert (final.rounds_done, "reason" in final.stop) == (9, False)
    assert "stopped" not in made.tracker.records[-1]


def test_a_run_without_the_rule_remembers_nothing():
    assert driver()[0].run(ServerState(rounds_done=0, adapter=START)).stop == {}
