"""Byzantine clients: what they send, who they are, and that nobody else is touched by them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpft.config import AdversaryConfig, load_config
from fedpft.config.adversary import ON_DATA
from fedpft.federated.adversary.attacks import alie, gaussian, inner_product, min_max, sign_flip, squared_distances
from fedpft.federated.adversary.clients import Adversaries, draw_adversaries
from fedpft.federated.messages import ClientFailure
from tests.unit.federated.test_driver import SIZES, FakePool, driver, start
from tests.unit.federated.test_driver_faults import UnreliablePool

BYZFL = json.loads((Path(__file__).parents[2] / "golden/attacks.json").read_text())
TOLERANCE = 1e-12
BAD = frozenset({1, 3})


@pytest.mark.parametrize("case", BYZFL["cases"], ids=[f"{len(case['honest'])} updates" for case in BYZFL["cases"]])
def test_attacks_are_those_of_byzfl(case, record_property):
    honest = np.array(case["honest"])
    pairs = [(sign_flip(honest[0], 1.0), case["sign_flip"])]
    pairs += [(inner_product(honest, float(tau)), sent) for tau, sent in case["inner_product"].items()]
    pairs += [(alie(honest, float(tau)), sent) for tau, sent in case["alie"].items()]
    largest = max(np.abs(found - np.array(sent)).max() for found, sent in pairs)
    record_property(f"byzfl's attacks (tolerance {TOLERANCE:.0e})", f"{largest:.1e}")
    assert largest <= TOLERANCE


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 10**6))
def test_min_max_goes_against_the_spread_as_far_as_any_two_honest_updates_are_apart(n, size, seed):
    honest = np.random.default_rng(seed).normal(0, 1, (n, size))
    sent = min_max(honest)
    farthest = np.sqrt(squared_distances(honest).max())
    assert np.linalg.norm(honest - sent, axis=1).max() == pytest.approx(farthest, rel=1e-9)
    steps = (sent - honest.mean(axis=0)) / -honest.std(axis=0, ddof=1)
    assert steps == pytest.approx(np.full(size, steps[0]), rel=1e-6)
    assert steps[0] > 0


def test_attacks_on_a_single_honest_update_or_equal_ones_are_that_update():
    one = np.array([[1.0, 2.0]])
    for attack in (min_max, lambda honest: alie(honest, 9.0)):
        assert attack(one).tolist() == attack(np.repeat(one, 3, axis=0)).tolist() == [1.0, 2.0]


def test_noise_has_the_standard_deviation_asked_for():
    noise = gaussian(20_000, 0.5, np.random.default_rng(0))
    assert (noise.mean(), noise.std()) == (pytest.approx(0, abs=0.02), pytest.approx(0.5, abs=0.02))


def test_adversaries_are_drawn_by_the_clients_seed_and_fewer_are_among_more():
    def drawn(fraction, *overrides):
        adversary = f"federated.adversary={{kind: sign_flip, fraction: {fraction}}}"
        found = draw_adversaries(load_config(None, [adversary, *overrides]), 100)
        return found.clients if found else frozenset()

    assert len(drawn(0.3)) == 30
    assert drawn(0.1) < drawn(0.3)
    assert drawn(0.3, "seed=1", "federated.seed=42") == drawn(0.3, "seed=42") != drawn(0.3, "seed=1")
    assert drawn(0.0) == drawn(0.004) == drawn(0.3, "federated.adversary.kind=none") == frozenset()


def attacked(kind, pool=None, **settings):
    """Return a driver of all five clients of which two are adversaries, with what its aggregation was given."""
    federated = {"sampling": "full", "clients_per_round": 5, "rounds": 2, "aggregation": "uniform"} | settings
    made, _ = driver(pool=pool, **federated)
    return replace(made, adversaries=Adversaries(config=AdversaryConfig(kind=kind), seed=0, clients=BAD))


def sent(made, plan):
    """Return what the server gets in a round, by client."""
    outcomes = made.adversaries.attack(plan, made.pool.run(plan, [4, 3, 2, 1, 0]))
    return {outcome.client_id: outcome for outcome in outcomes}


KINDS = ("sign_flip", "gaussian", "alie", "inner_product", "min_max")


@pytest.mark.parametrize("kind", KINDS)
def test_only_adversaries_send_something_else_and_all_of_them_are_recorded(kind):
    made = attacked(kind)
    final = made.run(start())
    plan = made.pool.plans[0]
    plain, found = {o.client_id: o for o in made.pool.run(plan, range(5))}, sent(made, plan)
    for client in range(5):
        same = found[client].adapter.tobytes() == plain[client].adapter.tobytes()
        assert same == (client not in BAD)
        assert found[client].metrics == plain[client].metrics
    assert [record["adversaries"] for record in made.tracker.records] == [[1, 3]] * 2
    mean = np.mean([found[client].adapter.astype(np.float64) for client in range(5)], axis=0)
    assert made.pool.plans[1].adapter == pytest.approx(mean, rel=1e-6)
    again = attacked(kind).run(start())
    assert again.adapter.tobytes() == final.adapter.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_adversaries_send_does_not_depend_on_who_answers_first(kind):
    class OtherOrder(FakePool):
        def run(self, plan, client_ids):
            return iter(sorted(super().run(plan, client_ids), key=lambda update: (update.client_id * 2) % 5))

    finals = [attacked(kind, pool).run(start()).adapter.tobytes() for pool in (FakePool(), OtherOrder())]
    assert finals[0] == finals[1]


def test_who_fails_or_sends_nonsense_tells_the_adversaries_nothing():
    pool = UnreliablePool(
        failing={1: [0]}, spoil=lambda u: replace(u, adapter=u.adapter * np.nan) if u.client_id == 2 else u
    )
    made = attacked("inner_product", pool)
    state = made.run_round(start())
    assert made.tracker.records[0]["dropped"] == [0, 2]
    plan = made.pool.plans[0]
    honest = 5 * plan.lr  # client 4 alone
    assert state.adapter == pytest.approx(np.full(6, (honest - 2 * 2 * honest) / 3), rel=1e-5)
    assert isinstance(sent(made, plan)[0], ClientFailure)


def test_without_honest_updates_adversaries_send_their_own():
    made = attacked("alie")
    made = replace(made, adversaries=replace(made.adversaries, clients=frozenset(range(5))))
    assert made.run_round(start()).adapter == pytest.approx(np.full(6, 0.1 * 3), rel=1e-5)


@pytest.mark.parametrize("kind", ON_DATA)
def test_who_spoils_data_sends_what_it_trained(kind):
    plain, _ = driver(sampling="full", clients_per_round=5, rounds=2, aggregation="uniform")
    assert attacked(kind).run(start()).adapter.tobytes() == plain.run(start()).adapter.tobytes()
    assert len(SIZES) == 5
