"""What every `ClientPool` promises: one test body for all of them."""

import platform
from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import ClientConfig, ConfigError, PoolConfig
from fedpft.config.client import CLIENT_STEPS
from fedpft.federated.messages import ClientFailure, Masking, MaskingStep, RoundPlan
from fedpft.federated.pool import SequentialPool
from fedpft.models.lora import get_adapter
from fedpft.models.quantize import pack_quantized, quantize_changes
from fedpft.models.weights import unpack_model
from fedpft.privacy.dp_sgd import ExampleNoise
from fedpft.privacy.fixed_point import FixedPoint
from tests.tiny import tiny_package

PACKAGE = tiny_package(shard_sizes=(6, 9, 5, 12, *range(1, 8), *range(1, 8)))
ADAPTER = get_adapter(unpack_model(PACKAGE.proxy))
CLIENTS = [0, 1, *range(3, 17)]


def plan(round_index=1, *, adapter=ADAPTER, count=True):
    return RoundPlan(round_index=round_index, lr=1e-2, adapter=adapter, count_activations=count)


def changed_weights():
    """Return rows of `up`, columns of `down` and all of a bias anew."""
    names = [name for name in PACKAGE.proxy.weights if "layer.1.intermediate" in name or "layer.2.output.dense" in name]
    changed = {name: PACKAGE.proxy.weights[name].copy() for name in names if "attention" not in name}
    for name, array in changed.items():
        chosen = array[:, ::3] if name == "base_model.model.bert.encoder.layer.2.output.dense.weight" else array[::3]
        chosen *= 1.5
    return changed


def fingerprint(updates):
    """Return all that an update says but who ran it, how long it took and when it arrived."""
    return [
        (
            u.client_id,
            u.num_examples,
            u.adapter.dtype,
            u.adapter.tobytes(),
            u.metrics["loss"],
            None if u.counts is None else [a.tolist() for a in (*u.counts.zeros, u.counts.positions)],
            {name: array.tobytes() for name, array in u.state.items()},
        )
        for u in sorted(updates, key=lambda u: u.client_id)
    ]


def package_for(pool):
    """Return the package, with as many clients together as the pool is to train so."""
    return replace(PACKAGE, settings=replace(PACKAGE.settings, clients_per_batch=getattr(pool, "together", 1)))


def play(pool):
    """Run three rounds, the last after a change of the proxy; return the fingerprint of each."""
    pool.broadcast(package_for(pool))
    rounds = [fingerprint(pool.run(plan(1), CLIENTS))]
    adapter = np.frombuffer(rounds[0][0][3], dtype=np.float32)
    rounds.append(fingerprint(pool.run(plan(2, adapter=adapter, count=False), [2])))
    pool.replace_weights(changed_weights())
    rounds.append(fingerprint(pool.run(plan(3, adapter=adapter), CLIENTS)))
    return rounds


@pytest.fixture(scope="module")
def expected():
    return play(SequentialPool())


POOLS = {
    "sequential": (0, 1),
    "2 together": (0, 2),
    "16 together": (0, 16),
    "as many together as pay": (0, "auto"),
    "ray with 2 actors, 2 together": (2, 2),
    "ray with 2 actors": (2, 1),
    "ray with 1 actor, 16 together": (1, 16),
}
"""Name -> number of actors (0: in this process), and of clients that train together."""


IN_THE_LONG_SUITE = ("ray with 2 actors", "ray with 1 actor, 16 together")
"""A run with two actors, one client at a time, is in `test_faults.py` and `test_bit_identity.py` too."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.cluster] * (name in IN_THE_LONG_SUITE)) for name in POOLS],
)
def pool(request):
    num_actors, together = POOLS[request.param]
    if num_actors == 0:
        made = SequentialPool(max_retries=0)
    else:
        request.getfixturevalue("local_ray")
        from fedpft.simulation.pool.ray_pool import RayClientPool

        made = RayClientPool(PoolConfig(actors=num_actors, max_retries=0), clients_per_round=3)
    made.together = together
    yield made
    made.close()


def test_every_pool_returns_bit_identical_updates(pool, expected):
    found = play(pool)
    assert changed_weights()
    assert [[update[0] for update in updates] for updates in found] == [CLIENTS, [2], CLIENTS]
    assert found == expected
    assert found[0][0][5] is not None
    assert found[1][0][5] is None


def play_quantised(pool):
    """Run a round on frozen weights in 4 bits, and one after a change of them."""
    model = unpack_model(PACKAGE.proxy)
    pool.broadcast(replace(package_for(pool), proxy=pack_quantized(model, "nf4")))
    rounds = [fingerprint(pool.run(plan(1), CLIENTS))]
    pool.replace_weights(quantize_changes(model, changed_weights(), "nf4"))
    return [*rounds, fingerprint(pool.run(plan(2), CLIENTS))]


@pytest.fixture(scope="module")
def expected_quantised():
    return play_quantised(SequentialPool())


def test_on_quantised_weights_every_pool_returns_bit_identical_updates(pool, expected, expected_quantised):
    found = play_quantised(pool)
    assert found == expected_quantised
    assert found[0] != found[1]
    assert found[0] != expected[0]


@pytest.fixture(scope="module")
def expected_of_kinds():
    place = SequentialPool()
    return {kind: play_kind(place, kind, together=1) for kind in CLIENT_STEPS}


def play_kind(pool, kind, together):
    """Run a round of a kind of client step, half of whose clients have a state, with all that makes steps differ."""
    client = ClientConfig(kind=kind, schedule="linear", warmup_steps=1)
    settings = replace(PACKAGE.settings, clients_per_batch=together, client=client, accumulate=2)
    pool.broadcast(replace(PACKAGE, settings=settings))
    shared, *own = np.random.default_rng(0).normal(size=(4, len(ADAPTER))).astype(np.float32) / 100
    states = dict(zip([0, 4, 7], ({"variate": array} for array in own), strict=True))
    return fingerprint(pool.run(replace(plan(), shared={"variate": shared}, states=states, tau=1.5), range(8)))


@pytest.mark.parametrize("kind", CLIENT_STEPS)
def test_every_kind_of_client_step_gives_every_pool_the_same_bits(pool, kind, expected_of_kinds):
    assert play_kind(pool, kind, getattr(pool, "together", 1)) == expected_of_kinds[kind]
    has_state = [bool(update[6]) for update in expected_of_kinds[kind]]
    assert has_state == [kind == "scaffold"] * 8


def play_private(pool):
    """Run a round in which clients clip their examples' gradients and add noise, in batches of 4, by parts of 2."""
    noise = ExampleNoise(clip=0.1, noise_multiplier=0.5, batch_size=4)
    settings = replace(package_for(pool).settings, example_noise=noise, batch_size=2, accumulate=2)
    pool.broadcast(replace(PACKAGE, settings=settings))
    return fingerprint(pool.run(plan(count=False), range(5)))


@pytest.fixture(scope="module")
def expected_private():
    return play_private(SequentialPool())


def test_with_privacy_of_examples_every_pool_returns_the_same_bits(pool, expected_private):
    assert play_private(pool) == expected_private


def play_masked(pool):
    """Return what clients answer and send in a round with secure aggregation."""
    pool.broadcast(package_for(pool))
    first = MaskingStep(step="keys", round_index=1, threshold=3)
    keys = {answer.client_id: answer.sent[answer.client_id] for answer in pool.ask(first, CLIENTS)}
    keys = dict(sorted(keys.items()))
    answers = pool.ask(replace(first, step="shares", keys=keys), CLIENTS)
    sealed = {answer.client_id: dict(answer.sent) for answer in answers}
    inbox = {holder: {sender: sealed[sender][holder] for sender in CLIENTS} for holder in CLIENTS}
    fixed = FixedPoint.of(bound=16.0, most_weight=16, num_parties=len(CLIENTS))
    masked = replace(plan(), masking=Masking(keys=keys, fixed=fixed, is_weighted=True))
    updates = {update.client_id: update.masked.tobytes() for update in pool.run(masked, CLIENTS[:-1])}
    last = replace(first, step="unmask", keys=keys, inbox=inbox, survivors=frozenset(CLIENTS[:-1]))
    revealed = {answer.client_id: dict(answer.sent) for answer in pool.ask(last, CLIENTS[:3])}
    return keys, sealed, updates, revealed


@pytest.fixture(scope="module")
def expected_masked():
    return play_masked(SequentialPool())


def test_with_masks_every_pool_returns_the_same_bits(pool, expected_masked):
    assert play_masked(pool) == expected_masked


def test_a_round_is_the_same_when_run_again(pool):
    pool.broadcast(package_for(pool))
    first, second = (fingerprint(pool.run(plan(5), CLIENTS)) for _ in range(2))
    assert first == second


def test_changed_weights_change_the_next_round(pool):
    pool.broadcast(package_for(pool))
    before = fingerprint(pool.run(plan(), [0]))
    pool.replace_weights(changed_weights())
    after = fingerprint(pool.run(plan(), [0]))
    assert before[0][4] != after[0][4]


def test_memory_is_reported_for_each_actor_outside_the_driver(pool):
    peaks = pool.peak_memory_bytes()
    assert len(peaks) == (0 if isinstance(pool, SequentialPool) else pool.num_actors)
    assert all(peak > 10**7 for peak in peaks)


def test_every_actor_takes_its_turn(pool):
    pool.broadcast(package_for(pool))
    updates = list(pool.run(plan(), [0, 1, 2, 3]))
    places = {"driver"} if isinstance(pool, SequentialPool) else {f"actor-{i}" for i in range(pool.num_actors)}
    assert {update.actor for update in updates} == places
    assert sorted(update.client_id for update in updates) == [0, 1, 2, 3]


def test_a_client_that_always_fails_is_returned_as_a_failure_and_harms_no_other(pool, expected):
    """The last test of a pool: it changes which actors there are."""
    pool.broadcast(package_for(pool))
    outcomes = {outcome.client_id: outcome for outcome in pool.run(plan(3), [0, 99])}
    failure = outcomes.pop(99)
    assert isinstance(failure, ClientFailure)
    assert (failure.round_index, failure.attempts, failure.node) == (3, 1, platform.node())
    assert failure.reason.startswith("IndexError: client_id 99")
    assert "partition.py" in failure.traceback
    assert "\x1b" not in failure.traceback
    assert [(update.client_id, update.attempts) for update in outcomes.values()] == [(0, 1)]
    assert fingerprint(pool.run(plan(1), CLIENTS)) == expected[0]


def test_a_pool_that_joined_ray_leaves_it_running_when_it_cannot_start(local_ray):
    from fedpft.simulation.pool.ray_pool import RayClientPool

    with pytest.raises(ConfigError, match=r"asks 7 actors x 1 CPU, the cluster has 2 CPU"):
        RayClientPool(PoolConfig(actors=7), clients_per_round=3)
    assert local_ray.is_initialized()
