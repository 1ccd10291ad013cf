"""What travels besides the adapter, or of it: through the driver, with clients that are played by a formula."""

from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import ClientConfig, FederatedConfig
from fedpft.data.partition import Partition
from fedpft.federated.driver import Driver, ServerState
from fedpft.federated.exchange import make_exchange
from fedpft.federated.messages import ClientFailure, ClientUpdate
from fedpft.federated.observer import SilentObserver
from fedpft.interrupt import RunStoppedError
from fedpft.methods.base import FixedProxy
from fedpft.models.lora import tuned_mask
from tests.fakes import FakeTracker

LAYOUT = (("head.weight", (2, 2)), ("x.lora_A.default.weight", (1, 3)), ("x.lora_B.default.weight", (5, 1)))
P = 12
SIZES = np.array([10, 20, 30, 40])
VARIATE = "clients/variate"


class Pool:
    """Clients whose state is what they were sent as theirs, plus their number and one; `spoil` has the last word."""

    num_actors = 1

    def __init__(self, spoil=lambda update: update):
        self.plans, self.spoil = [], spoil

    def run(self, plan, client_ids):
        self.plans.append(plan)
        self.own = {client: plan.states[client]["variate"] for client in client_ids if client in plan.states}
        for client_id in reversed(client_ids):
            state = {}
            if plan.shared:
                state = {"variate": self.own.get(client_id, np.zeros(P, np.float32)) + np.float32(client_id + 1)}
            tuned = plan.adapter if len(plan.adapter) < P else plan.adapter[tuned_mask(LAYOUT, plan.tuned)]
            yield self.spoil(
                ClientUpdate(
                    client_id=client_id,
                    num_examples=int(SIZES[client_id]),
                    adapter=tuned + np.float32(1),
                    metrics={"loss": 1.0, "seconds": 1.0},
                    state=state,
                )
            )

    def memory(self):
        return {}


def driver(kind="scaffold", spoil=lambda update: update, *, tuned="all", keeps_frozen=False, **federated):
    settings = {"num_clients": 4, "rounds": 6, "sampling": "full", "aggregation": "uniform"} | federated
    config = FederatedConfig(client=ClientConfig(kind=kind), **settings)
    made = Driver(
        config=config,
        seed=0,
        partition=Partition.of_sizes(np.arange(SIZES.sum()), SIZES),
        num_neurons=(),
        method=FixedProxy(),
        pool=Pool(spoil),
        exchange=replace(make_exchange(config, SIZES, LAYOUT), keeps_frozen=keeps_frozen),
        evaluate=lambda adapter: {"fm": 0.5},
        evaluation_interval=1,
        tracker=FakeTracker(),
        observer=SilentObserver(),
    )
    plan = made._plan
    object.__setattr__(made, "_plan", lambda *given, count: replace(plan(*given, count=count), tuned=tuned))
    return made


def start():
    return ServerState(rounds_done=0, adapter=np.zeros(P, np.float32))


def test_clients_find_their_own_state_again_and_the_servers_is_the_mean_of_all():
    made = driver()
    state = made.run_round(start())
    assert made.pool.plans[0].shared["variate"].tolist() == [0] * P
    assert made.pool.own == {}
    assert state.arrays[VARIATE].tolist() == [(1 + 2 + 3 + 4) / 4] * P
    state = made.run_round(state)
    assert made.pool.plans[1].shared["variate"].tolist() == [2.5] * P
    assert {client: own[0] for client, own in made.pool.own.items()} == {0: 1, 1: 2, 2: 3, 3: 4}
    assert state.arrays[VARIATE].tolist() == [5] * P
    assert state.arrays["clients/rounds"].tolist() == [2] * 4


def test_with_weights_by_examples_the_servers_variate_has_them_too():
    state = driver(aggregation="weighted").run_round(start())
    assert state.arrays[VARIATE] == pytest.approx(np.full(P, np.dot(SIZES, [1, 2, 3, 4]) / SIZES.sum()))


@pytest.mark.parametrize("how", ["failed", "refused"])
def test_a_dropped_client_keeps_its_state_and_changes_no_others(how):
    def spoil(update):
        if (update.client_id, len(made.pool.plans)) != (1, 2):
            return update
        if how == "refused":
            return replace(update, state={"variate": np.full(P, np.nan, np.float32)})
        failure = {"attempts": 1, "actor": "x", "node": "y", "reason": "broken"}
        return ClientFailure(round_index=2, client_id=1, **failure)

    made = driver(spoil=spoil)
    state = made.run_round(made.run_round(start()))
    assert made.tracker.records[1]["dropped"] == [1]
    assert state.arrays["clients/rounds"].tolist() == [2, 1, 2, 2]
    assert state.arrays[VARIATE].tolist() == [(2 + 2 + 6 + 8) / 4] * P
    made.run_round(state)
    assert {client: own[0] for client, own in made.pool.own.items()} == {0: 2, 1: 2, 2: 6, 3: 8}


def test_a_round_that_does_not_count_changes_no_state():
    def spoil(update):
        return replace(update, num_examples=0) if len(made.pool.plans) == 2 and update.client_id else update

    made = driver(spoil=spoil, min_clients=2)
    first = made.run_round(start())
    second = made.run_round(first)
    assert made.tracker.records[1]["counted"] is False
    assert second.arrays == first.arrays
    made.run_round(second)
    assert {client: own[0] for client, own in made.pool.own.items()} == {0: 1, 1: 2, 2: 3, 3: 4}


@pytest.mark.parametrize(
    ("state", "words"),
    [({}, "a state of nothing, expected"), ({"variate": np.zeros(3, np.float32)}, "expected {'variate'")],
)
def test_a_state_of_another_shape_is_refused(state, words):
    made = driver(spoil=lambda update: replace(update, state=state), rounds=1)
    with pytest.raises(RunStoppedError, match=words):
        made.run(start())


def test_the_bytes_of_states_count():
    made = driver()
    made.run_round(made.run_round(start()))
    first, second = made.tracker.records
    vector = 4 * P
    assert (first["comm/bytes_up"], first["comm/bytes_down"]) == (4 * 2 * vector, 4 * 2 * vector)
    assert (second["comm/bytes_up"], second["comm/bytes_down"]) == (4 * 2 * vector, 4 * 3 * vector)
    plain = driver("adamw")
    plain.run_round(start())
    record = plain.tracker.records[0]
    assert (record["comm/bytes_up"], record["comm/bytes_down"]) == (4 * vector, 4 * vector)


@pytest.mark.parametrize("keeps_frozen", [False, True])
def test_of_an_adapter_only_what_is_tuned_is_sent_and_counted(keeps_frozen):
    """Down as well where clients have the rest with the proxy; the server's adapter is whole again."""
    made = driver("adamw", tuned="B", keeps_frozen=keeps_frozen)
    state = made.run_round(replace(start(), adapter=np.arange(P, dtype=np.float32)))
    record, mask = made.tracker.records[0], tuned_mask(LAYOUT, "B")
    assert mask.sum() == 9
    assert state.adapter.tolist() == (np.arange(P) + mask).tolist()
    assert record["comm/bytes_up"] == 4 * 4 * 9
    assert record["comm/bytes_down"] == 4 * 4 * (9 if keeps_frozen else P)
    assert made.pool.plans[0].is_whole is not keeps_frozen


def test_fednovas_clients_are_told_how_far_the_cohort_goes():
    made = driver("fednova", batch_size=10, local_epochs=2)
    made.run_round(start())
    assert made.pool.plans[0].tau == pytest.approx(2 * (1 + 2 + 3 + 4) / 4)
