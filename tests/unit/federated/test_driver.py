import json
import re
from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import FederatedConfig
from fedpft.data.partition import Partition
from fedpft.federated.driver import Driver, ServerState
from fedpft.federated.messages import ClientUpdate
from fedpft.federated.observer import SilentObserver
from fedpft.federated.sampling import sample_cohort
from fedpft.methods.base import ProxyChange
from fedpft.models.activations import ActivationCounts
from fedpft.seeding import numpy_rng
from tests.fakes import FakeTracker

NUM_PARAMETERS = 6
START = np.zeros(NUM_PARAMETERS, dtype=np.float32)
CHANGE = {"ffn.up": np.ones((2, 5), np.float32), "ffn.down": np.ones(3, np.float32)}
CHANGE_BYTES = 4 * 13
SIZES = np.array([10, 20, 30, 40, 50])


class FakePool:
    """Adds (client id + 1) x lr to every parameter; the last client replies first."""

    num_actors = 1

    def __init__(self, spoil=lambda update: update, sizes=SIZES):
        self.plans, self.cohorts, self.replaced, self.spoil, self.sizes = [], [], [], spoil, sizes

    def memory(self):
        return {"object_store_bytes": 7}

    def replace_weights(self, weights):
        self.replaced.append((len(self.plans), weights))
        return CHANGE_BYTES

    def run(self, plan, client_ids):
        self.plans.append(plan)
        self.cohorts.append(list(client_ids))
        counts = None
        if plan.count_activations:
            counts = ActivationCounts(zeros=(np.array([1, 2]),), positions=np.array([4]))
        for client_id in sorted(client_ids, reverse=True):
            yield self.spoil(
                ClientUpdate(
                    client_id=client_id,
                    num_examples=int(self.sizes[client_id]),
                    adapter=plan.adapter + np.float32((client_id + 1) * plan.lr),
                    metrics={"loss": float(client_id), "seconds": 0.5},
                    counts=counts,
                    actor="fake",
                )
            )


class FakeMethod:
    def __init__(self, rounds_with_counts=()):
        self.rounds_with_counts, self.asked, self.after = set(rounds_with_counts), [], []

    def wants_counts(self, round_index, num_rounds):
        self.asked.append((round_index, num_rounds))
        return round_index in self.rounds_with_counts

    def after_round(self, round_index, adapter, counts):
        self.after.append((round_index, adapter.copy(), counts))
        return ProxyChange(weights=CHANGE, metrics={"align/loss": 0.25})


def driver(*, pool=None, method=None, evaluation_interval=100, seed=0, sizes=SIZES, **federated):
    federated = {"num_clients": 5, "rounds": 5, "clients_per_round": 3, "lr": 0.1} | federated
    evaluated = []

    def evaluate(adapter):
        evaluated.append(adapter.copy())
        return {"fm": 0.75, "sub_fm": 0.5}

    made = Driver(
        config=FederatedConfig(**federated),
        seed=seed,
        partition=Partition.of_sizes(np.arange(sizes.sum()), sizes),
        num_neurons=(2,),
        method=method or FakeMethod(),
        pool=pool or FakePool(),
        evaluate=evaluate,
        evaluation_interval=evaluation_interval,
        tracker=FakeTracker(),
        observer=SilentObserver(),
    )
    return made, evaluated


def start():
    return ServerState(rounds_done=0, adapter=START)


def test_every_round_starts_from_the_aggregate_of_the_round_before():
    made, _ = driver(lr_schedule="constant", aggregation="uniform")
    final = made.run(start())
    expected = START.copy()
    for plan, cohort in zip(made.pool.plans, made.pool.cohorts, strict=True):
        assert plan.adapter == pytest.approx(expected, rel=1e-6)
        expected = expected + np.mean([client_id + 1 for client_id in cohort]) * np.float32(0.1)
    assert final.adapter == pytest.approx(expected, rel=1e-6)
    assert final.rounds_done == 5


def test_plans_carry_the_round_and_its_rate():
    made, _ = driver(lr=1.0, lr_schedule="linear")
    made.run(start())
    assert [plan.round_index for plan in made.pool.plans] == [1, 2, 3, 4, 5]
    assert [plan.lr for plan in made.pool.plans] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_counts_are_requested_and_used_exactly_when_the_method_wants_them():
    method = FakeMethod(rounds_with_counts=(2, 4))
    made, _ = driver(method=method)
    made.run(start())
    assert method.asked == [(i, 5) for i in range(1, 6)]
    assert [plan.count_activations for plan in made.pool.plans] == [False, True, False, True, False]
    assert [round_index for round_index, _, _ in method.after] == [2, 4]
    for round_index, adapter, counts in method.after:
        assert adapter.tobytes() == made.pool.plans[round_index].adapter.tobytes(), "the aggregate of this round"
        assert counts.zeros[0].tolist() == [3, 6]
        assert counts.positions.tolist() == [12]


def test_changed_weights_are_sent_once_before_the_next_round():
    made, _ = driver(method=FakeMethod(rounds_with_counts=(2, 4)))
    final = made.run(start())
    assert [after for after, _ in made.pool.replaced] == [2, 4]
    assert all(weights is CHANGE for _, weights in made.pool.replaced)
    assert final.proxy_version == 2
    assert [record["proxy_version"] for record in made.tracker.records] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("interval", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (100, [5]), (3, [3, 5])]
)
def test_evaluation_comes_at_its_interval_and_at_the_end_with_that_rounds_aggregate(interval, expected):
    made, evaluated = driver(evaluation_interval=interval)
    final = made.run(start())
    assert [record["round"] for record in made.tracker.records if "fm" in record] == expected
    adapters = [plan.adapter for plan in made.pool.plans[1:]] + [final.adapter]
    assert [a.tobytes() for a in evaluated] == [adapters[i - 1].tobytes() for i in expected]
    assert final.last_evaluation == {"fm": 0.75, "sub_fm": 0.5}


def test_whatever_the_evaluation_returns_is_in_the_record_and_in_the_state():
    made, _ = driver(rounds=1)
    evaluation = {"fm": 0.75, "fidelity": {"hidden_error": [0.1, 0.2]}}
    final = replace(made, evaluate=lambda adapter: evaluation).run(start())
    assert made.tracker.records[0].items() >= evaluation.items()
    assert final.last_evaluation == evaluation


def test_evaluation_changes_nothing_in_the_run():
    finals = [driver(evaluation_interval=interval)[0].run(start()) for interval in (1, 100)]
    assert finals[0].adapter.tobytes() == finals[1].adapter.tobytes()


def test_records_have_the_documented_keys():
    made, _ = driver(evaluation_interval=2, method=FakeMethod(rounds_with_counts=(1,)))
    made.run(start())
    for record, cohort in zip(made.tracker.records, made.pool.cohorts, strict=True):
        assert {"round", "clients", "train_loss", "lr", "seconds"} <= record.keys()
        assert record["clients"] == sorted(cohort)
        assert cohort == sorted(cohort, key=lambda client: -SIZES[client])
        loss = np.average(cohort, weights=SIZES[cohort])
        assert record["train_loss"] == pytest.approx(loss)
        evaluated = record["round"] in (2, 4, 5)
        assert ({"fm", "sub_fm"} <= record.keys()) == evaluated
        assert ("align/loss" in record) == (record["round"] == 1)
        assert record["time/actor_utilisation_mean"] == record["time/actor_utilisation_min"] > 0, "one actor, no idler"
    assert [round_index for round_index, _ in made.tracker.clients] == [1, 2, 3, 4, 5]
    for _, rows in made.tracker.clients:
        assert [set(row) for row in rows] == [{"client_id", "num_examples", "loss", "seconds", "actor"}] * 3
        assert [row["client_id"] for row in rows] == sorted(row["client_id"] for row in rows)


def test_communicated_bytes_add_up():
    made, _ = driver(method=FakeMethod(rounds_with_counts=(2,)), rounds=4)
    made.run(start())
    adapter, counts = 4 * NUM_PARAMETERS, 8 * 2 + 8
    up = [record["comm/bytes_up"] for record in made.tracker.records]
    down = [record["comm/bytes_down"] for record in made.tracker.records]
    assert up == [3 * adapter, 3 * (adapter + counts), 3 * adapter, 3 * adapter]
    assert down == [3 * adapter, 3 * adapter, 3 * (adapter + CHANGE_BYTES), 3 * adapter]


def test_a_run_of_half_the_rounds_continues_to_the_same_end():
    straight = driver()[0].run(start())
    made, _ = driver()
    state = start()
    for _ in range(2):
        state = made.run_round(state)
    resumed = driver()[0].run(state)
    assert resumed.adapter.tobytes() == straight.adapter.tobytes()


def test_every_round_ends_with_its_tracked_state_in_the_checkpoint():
    made, _ = driver(method=FakeMethod(rounds_with_counts=(2,)))
    states = []

    def checkpoint(state):
        states.append(state)
        assert made.tracker.records[-1]["round"] == state.rounds_done

    final = replace(made, checkpoint=checkpoint).run(start())
    assert [state.rounds_done for state in states] == [1, 2, 3, 4, 5]
    assert [state.proxy_version for state in states] == [0, 1, 1, 1, 1]
    assert [state.pending_bytes for state in states] == [0, CHANGE_BYTES, 0, 0, 0]
    assert states[-1] is final


@pytest.mark.parametrize("resumed_after", range(6))
def test_any_state_goes_on_to_the_same_records(resumed_after):
    def made(checkpoint):
        return replace(driver(method=FakeMethod(rounds_with_counts=(2, 4)))[0], checkpoint=checkpoint)

    states = [start()]
    straight = made(states.append)
    straight.run(start())
    resumed = made(lambda state: None)
    final = resumed.run(states[resumed_after])
    assert final.adapter.tobytes() == states[-1].adapter.tobytes()

    def untimed(records):
        measured = re.compile("seconds|utilisation|memory/")
        return [{key: record[key] for key in record if not measured.search(key)} for record in records]

    assert untimed(resumed.tracker.records) == untimed(straight.tracker.records)[resumed_after:]


@pytest.mark.parametrize(("goal", "best"), [("max", (2, 0.75)), ("min", (3, 0.25))])
def test_the_best_evaluation_is_the_earliest_with_the_best_plugged_in_fm(goal, best):
    made, _ = driver()
    scores = iter([0.5, 0.75, 0.25, 0.75, 0.25])
    evaluate = {"evaluate": lambda _: {"fm": next(scores), "sub_fm": 0.1}, "evaluation_interval": 1}
    final = replace(made, **evaluate, goal=goal).run(start())
    assert final.best == {"round": best[0], "fm": best[1], "sub_fm": 0.1}
    assert final.last_evaluation["fm"] == 0.25


def test_cohorts_depend_on_the_seed_only():
    cohorts = []
    for seed in (0, 0, 1):
        made, _ = driver(seed=seed)
        made.run(start())
        cohorts.append(made.pool.cohorts)
    assert cohorts[0] == cohorts[1] != cohorts[2]


def test_power_of_choice_takes_the_candidates_who_had_the_highest_losses_when_they_trained_last():
    """The fake client's loss is its id: once all have trained, the candidates with the highest ids come."""
    settings = {"sampling": "power_of_choice", "clients_per_round": 2, "num_candidates": 3, "rounds": 12}
    made, _ = driver(**settings)
    states = []
    straight = replace(made, checkpoint=states.append).run(start())
    known = set()
    for record in made.tracker.records:
        (left,) = set(record["candidates"]) - set(record["clients"])
        assert len(record["candidates"]) == 3
        assert left in known or known.isdisjoint(record["clients"]), "who never trained comes first"
        assert left not in known or all(left < client for client in record["clients"] if client in known)
        known.update(record["clients"])
    assert {int(client) for client in straight.client_losses} == known
    again, _ = driver(**settings)
    saved = json.loads(json.dumps({k: v for k, v in vars(states[2]).items() if k != "adapter"}))
    resumed = again.run(ServerState(adapter=states[2].adapter, **saved))
    assert resumed.adapter.tobytes() == straight.adapter.tobytes()
    assert [r["clients"] for r in again.tracker.records] == [r["clients"] for r in made.tracker.records[3:]]


def test_losses_are_remembered_only_where_the_sampling_asks_for_them():
    assert driver()[0].run(start()).client_losses == {}


def test_md_sampling_trains_a_client_once_and_counts_it_as_often_as_drawn():
    made, _ = driver(sampling="md", clients_per_round=12, rounds=1, aggregation="uniform", lr=1.0)
    final = made.run(start())
    (cohort,) = made.pool.cohorts
    assert len(cohort) == len(set(cohort)) <= 5
    drawn = sample_cohort("md", SIZES, 12, numpy_rng(0, "cohort", 1))
    expected = sum((client + 1) * times for client, times in drawn.items()) / 12
    assert final.adapter == pytest.approx(np.full(6, expected), rel=1e-6)
