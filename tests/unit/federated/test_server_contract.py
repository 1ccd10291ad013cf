"""What every aggregator and server optimiser promises: one test body for all of them.

Pools return the same updates, bit for bit (their own contract), but in any order, and perhaps not of all clients.
"""

import re
from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import AggregatorConfig, FederatedConfig, ServerOptimiserConfig
from fedpft.config.algorithms import AGGREGATORS, SERVER_OPTIMISERS
from fedpft.data.partition import Partition
from fedpft.federated.driver import Driver, ServerState
from fedpft.federated.exchange import make_exchange
from fedpft.federated.messages import ClientFailure, ClientUpdate
from fedpft.federated.observer import SilentObserver
from fedpft.federated.server_rule import server_rule
from fedpft.interrupt import RunStoppedError
from fedpft.methods.base import FixedProxy
from fedpft.models.lora import tuned_mask
from fedpft.seeding import numpy_rng
from fedpft.storage.checkpoint import Checkpoints, RunCheckpoint, load_newest
from tests.fakes import FakeTracker

SIZES = np.array([10, 20, 30, 40, 50, 60, 70, 80, 90])
NUM_BYZANTINE = 1
LAYOUT = (
    ("head.modules_to_save.weight", (2, 2)),
    *((f"{layer}.lora_{factor}.weight", (2, 4)[:: 1 if factor == "A" else -1]) for layer in "xy" for factor in "AB"),
)
START = np.linspace(-1, 1, 36, dtype=np.float32)

ENTRIES = {
    **{kind: {"aggregator": AggregatorConfig(kind=kind, num_byzantine=NUM_BYZANTINE)} for kind in AGGREGATORS},
    **{f"server {kind}": {"server": ServerOptimiserConfig(kind=kind, head_lr=0.5)} for kind in SERVER_OPTIMISERS},
    **{f"lora {kind}": {"lora_aggregation": kind} for kind in ("ffa", "svd", "fedsvd", "alternate")},
    "one factor at a time with momentum": {
        "lora_aggregation": "alternate",
        "aggregator": AggregatorConfig(kind="centered_clipping", num_byzantine=1, norm=0.1),
        "server": ServerOptimiserConfig(kind="momentum"),
    },
    "a robust rule before adam": {
        "aggregator": AggregatorConfig(kind="centered_clipping", num_byzantine=1, norm=0.1),
        "server": ServerOptimiserConfig(kind="adam"),
    },
}


class Pool:
    """Clients that send an adapter of their own; they answer in an order that is drawn, or fail."""

    num_actors = 1

    def __init__(self, arrival, failing):
        self._rng, self._failing = np.random.default_rng(arrival), failing

    def memory(self):
        return {}

    def run(self, plan, client_ids):
        for client_id in self._rng.permutation(client_ids):
            rng = numpy_rng(0, "client", plan.round_index, int(client_id))
            about = {"round_index": plan.round_index, "client_id": int(client_id), "attempts": 1, "actor": "a"}
            if client_id in self._failing:
                yield ClientFailure(**about, node="n", reason="none")
            else:
                tuned = tuned_mask(LAYOUT, plan.tuned) if plan.is_whole else slice(None)
                sent = plan.adapter[tuned]
                yield ClientUpdate(
                    client_id=int(client_id),
                    num_examples=int(SIZES[client_id]),
                    adapter=sent + rng.normal(0.1, 0.3, len(sent)).astype(np.float32),
                    metrics={"loss": 1.0, "seconds": 0.1},
                )


def driver(entry, *, arrival=0, failing=(), checkpoint=lambda state: None, clients=range(9), **federated):
    """Return a driver of these clients alone, all in every round."""
    config = FederatedConfig(num_clients=len(clients), sampling="full", clients_per_round=1, rounds=4, **federated)
    config = replace(config, **entry)
    return Driver(
        config=config,
        seed=0,
        partition=Partition.of_sizes(np.arange(SIZES.sum()), SIZES[: len(clients)]),
        num_neurons=(),
        method=FixedProxy(),
        pool=Pool(arrival, failing),
        rule=server_rule(config, LAYOUT),
        exchange=make_exchange(config, SIZES[: len(clients)], LAYOUT),
        evaluate=lambda adapter: {"fm": float(adapter.sum())},
        evaluation_interval=1,
        tracker=FakeTracker(),
        observer=SilentObserver(),
        checkpoint=checkpoint,
    )


def bits(state):
    return state.adapter.tobytes(), {name: value.tobytes() for name, value in sorted(state.arrays.items())}


def begin():
    return ServerState(rounds_done=0, adapter=START)


@pytest.fixture(params=ENTRIES)
def entry(request):
    return ENTRIES[request.param]


def test_no_bit_depends_on_who_answers_first(entry):
    """So one actor, many and none give the same."""
    ends = [bits(driver(entry, arrival=arrival).run(begin())) for arrival in range(3)]
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][0] != START.tobytes()


@pytest.mark.parametrize("settings", [{"server": ServerOptimiserConfig(kind=kind)} for kind in ("momentum", "adam")]
    + [{"aggregator": AggregatorConfig(kind="centered_clipping", norm=0.1)}])  # fmt: skip
def test_a_factor_that_is_not_tuned_stays_and_what_is_remembered_of_it_waits(settings):
    made, state = driver({"lora_aggregation": "alternate", **settings}), begin()
    for round_index in (1, 2, 3):
        kept = ~tuned_mask(LAYOUT, "B" if round_index % 2 else "A")
        before, state = state, made.run_round(state)
        assert np.array_equal(state.adapter[kept], before.adapter[kept])
        assert not np.array_equal(state.adapter[~kept], before.adapter[~kept])
        assert state.arrays
        for name, value in state.arrays.items():
            start = np.full(START.shape, 1e-6) if name == "server/v" else np.zeros(START.shape)
            assert np.array_equal(value[kept], before.arrays.get(name, start)[kept])


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(entry, tmp_path):
    written = Checkpoints(tmp_path, 1)

    def keep(state):
        server = {name: value for name, value in vars(state).items() if name not in ("adapter", "arrays")}
        tensors = {"adapter": state.adapter, "arrays": state.arrays, "proxy": dict}
        if state.rounds_done <= 2:
            written.save(RunCheckpoint(server=server, **tensors, untuned={}))

    whole = driver(entry, checkpoint=keep)
    straight = whole.run(begin())
    saved = load_newest(tmp_path)
    assert saved.rounds_done == 2
    rest = driver(entry)
    resumed = rest.run(ServerState(adapter=saved.adapter, arrays=saved.arrays, **saved.server))
    assert bits(resumed) == bits(straight)
    untimed = [
        {key: value for key, value in record.items() if not re.search("seconds|utilisation|memory", key)}
        for record in (*whole.tracker.records[2:], *rest.tracker.records)
    ]
    assert untimed[:2] == untimed[2:]


def test_a_dropped_client_is_as_one_who_was_never_there(entry):
    dropped = driver(entry, failing={8}, arrival=1).run(begin())
    without = driver(entry, clients=range(8)).run(begin())
    assert bits(dropped) == bits(without)


def test_a_round_with_fewer_updates_than_the_rule_needs_changes_nothing(entry):
    fewest = entry.get("aggregator", AggregatorConfig()).min_updates
    enough = driver(entry, failing=set(range(fewest, 9))).run_round(begin())
    assert bits(enough)[0] != START.tobytes()
    made = driver(entry, failing=set(range(fewest - 1, 9)))
    state = made.run_round(begin())
    assert bits(state) == (START.tobytes(), {})
    assert made.tracker.records[0]["counted"] is False


def test_a_run_without_enough_updates_says_which_rule_needs_them():
    made = driver(ENTRIES["krum"], failing=set(range(4, 9)))
    with pytest.raises(RunStoppedError, match=r"4 good updates, 5 dropped; the 5 that .*kind = krum needs"):
        made.run(begin())


def test_transforms_of_updates_and_of_the_aggregate_have_their_places_in_the_chain():
    heard = []

    def halve(update, round_index, client_id):
        heard.append((round_index, client_id))
        return update / 2

    made = driver({})
    plain = made.run_round(begin()).adapter - START
    of_clients = replace(made, rule=replace(made.rule, update_transforms=[halve])).run_round(begin())
    of_server = replace(made, rule=replace(made.rule, server_transforms=[halve])).run_round(begin())
    assert of_clients.adapter - START == pytest.approx(plain / 2, abs=1e-6)
    assert of_server.adapter - START == pytest.approx(plain / 2, abs=1e-6)
    assert sorted(heard) == [(1, client_id) for client_id in range(-1, 9)]
