import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fedpft.federated.aggregate import Aggregation, in_client_order, mean_loss
from fedpft.federated.messages import ClientUpdate, RoundPlan
from fedpft.models.activations import ActivationCounts
from tests.shared import GOLDEN


def update(client_id, adapter, num_examples=1, loss=0.0, counts=None):
    adapter = np.asarray(adapter, dtype=np.float32)
    metrics = {"loss": loss, "seconds": 0.0}
    return ClientUpdate(client_id=client_id, num_examples=num_examples, adapter=adapter, metrics=metrics, counts=counts)


def round_plan(size):
    adapter = np.zeros(size, dtype=np.float32)
    return RoundPlan(round_index=1, lr=0.1, adapter=adapter, count_activations=False)


def aggregate(updates, cohort, kind, order=None):
    """Return the aggregation of updates that arrive in this order; each client has its turn by id."""
    plan = round_plan(len(updates[0].adapter))
    aggregation = Aggregation(plan, sorted(cohort) if order is None else order, cohort, kind)
    for each in updates:
        aggregation.add(each)
    return aggregation


def aggregate_adapters(updates, cohort, kind):
    return aggregate(updates, cohort, kind).next_adapter()[0]


def once(updates):
    """Return the cohort in which every client was drawn once."""
    return {u.client_id: 1 for u in in_client_order(updates)}


@pytest.fixture
def authors():
    if not (GOLDEN / "aggregation.json").is_file():
        pytest.skip(f"the authors' numbers are not at {GOLDEN}")
    tensors = load_file(GOLDEN / "aggregation.safetensors")
    names = sorted(name.removeprefix("uniform.") for name in tensors if name.startswith("uniform."))

    def flat(prefix):
        return np.concatenate([tensors[f"{prefix}.{name}"].reshape(-1) for name in names])

    return flat, json.loads((GOLDEN / "aggregation.json").read_text())


@pytest.mark.parametrize(("kind", "theirs"), [("uniform", "uniform"), ("weighted", "other")])
@pytest.mark.parametrize("arrival", [(0, 1, 2), (2, 0, 1)])
def test_mean_is_the_authors_where_they_pair_models_and_weights_correctly(authors, kind, theirs, arrival):
    flat, description = authors
    updates = [update(i, flat(f"client{i}"), description["sizes"][i]) for i in arrival]
    ours = aggregate_adapters(updates, once(updates), kind)
    assert np.abs(ours - flat(theirs)).max() <= description["tol_abs"]


def test_weights_are_paired_by_client_id_where_the_authors_pair_by_position(authors):
    _, description = authors
    updates = [update(i, np.eye(3)[i], description["sizes"][i]) for i in description["order_bug"]["selected"]]
    assert aggregate_adapters(updates, once(updates), "weighted") == pytest.approx([0.1, 0.2, 0.7])
    wrong = description["order_bug"]["effective_weights_client0_1_2_previous"]["other"][:3]
    assert wrong == pytest.approx([0.7, 0.1, 0.2])


@pytest.mark.parametrize(("kind", "expected"), [("uniform", [1 / 3, 0, 2 / 3]), ("weighted", [10 / 150, 0, 140 / 150])])
def test_a_client_drawn_twice_counts_twice(kind, expected):
    updates = [update(0, [1, 0, 0], 10), update(2, [0, 0, 1], 70)]
    assert aggregate_adapters(updates, {0: 1, 2: 2}, kind) == pytest.approx(expected)


COHORTS = st.lists(
    st.tuples(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), st.integers(1, 5000), st.floats(0, 10)),
    min_size=1,
    max_size=8,
)
KINDS = st.sampled_from(["uniform", "weighted"])


@settings(deadline=None)
@given(COHORTS, KINDS, st.randoms())
def test_order_of_arrival_does_not_change_a_bit(clients, kind, random):
    updates = [update(i, adapter, size, loss) for i, (adapter, size, loss) in enumerate(clients)]
    cohort = {i: 1 + i % 3 for i in range(len(updates))}
    arrived = random.sample(updates, len(updates))
    expected = aggregate_adapters(updates, cohort, kind)
    assert aggregate_adapters(arrived, cohort, kind).tobytes() == expected.tobytes()
    assert mean_loss(arrived) == mean_loss(updates)


@settings(deadline=None)
@given(COHORTS, KINDS)
def test_mean_lies_between_the_clients(clients, kind):
    updates = [update(i, adapter, size) for i, (adapter, size, _) in enumerate(clients)]
    mean = aggregate_adapters(updates, once(updates), kind)
    adapters = np.stack([u.adapter for u in updates])
    assert mean.dtype == np.float32
    assert (adapters.min(axis=0) <= mean).all()
    assert (mean <= adapters.max(axis=0)).all()


@settings(deadline=None)
@given(COHORTS, KINDS, st.randoms())
def test_the_order_of_the_sum_is_the_one_that_was_fixed(clients, kind, random):
    updates = [update(i, adapter, size) for i, (adapter, size, _) in enumerate(clients)]
    cohort = {i: 1 + i % 3 for i in range(len(updates))}
    order = random.sample(range(len(updates)), len(updates))
    total, total_weight = np.zeros(4), 0.0
    for client_id in order:
        weight = cohort[client_id] * (updates[client_id].num_examples if kind == "weighted" else 1)
        total, total_weight = total + weight * updates[client_id].adapter.astype(np.float64), total_weight + weight
    found = aggregate(random.sample(updates, len(updates)), cohort, kind, order).next_adapter()[0]
    assert found.tobytes() == (total / total_weight).astype(np.float32).tobytes()


def test_only_updates_before_their_turn_are_held():
    """Client 5 comes first, then 2, 9 and 7; a client that is dropped has had its turn."""
    aggregation = Aggregation(round_plan(1), [5, 2, 9, 7], dict.fromkeys([2, 5, 7, 9], 1), "uniform")
    held = []
    for step in (aggregation.add, 5), (aggregation.add, 9), (aggregation.add, 7), (aggregation.drop, 2):
        client_id = step[1]
        step[0](client_id if step[0] == aggregation.drop else update(client_id, [client_id]))
        held.append(aggregation.num_held)
    assert held == [0, 1, 2, 0]
    assert aggregation.next_adapter()[0].tolist() == [7.0]
    assert [report.client_id for report in aggregation.reports] == [5, 9, 7]
    assert not any(hasattr(report, "adapter") for report in aggregation.reports)


def test_clients_that_never_answered_or_answered_twice_change_no_mean():
    aggregation = aggregate([update(3, [1.0]), update(1, [3.0])], dict.fromkeys([1, 2, 3], 1), "uniform")
    aggregation.drop(3)
    aggregation.drop(99)
    assert aggregation.next_adapter()[0].tolist() == [2.0]


def test_mean_of_equal_adapters_is_that_adapter():
    adapter = np.random.default_rng(0).normal(size=100).astype(np.float32)
    updates = [update(i, adapter, 3 + i) for i in range(7)]
    assert aggregate_adapters(updates, once(updates), "weighted").tobytes() == adapter.tobytes()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 9)), min_size=1, max_size=30),
    KINDS,
)
def test_equal_updates_give_themselves_bit_for_bit_whatever_their_weights(adapter, weights, kind):
    updates = [update(i, adapter, size) for i, (size, _) in enumerate(weights)]
    cohort = {i: times for i, (_, times) in enumerate(weights)}
    assert np.array_equal(aggregate_adapters(updates, cohort, kind), np.asarray(adapter, dtype=np.float32))


@settings(deadline=None, max_examples=60)
@given(COHORTS, st.integers(2, 64), KINDS)
def test_only_the_ratio_of_weights_counts(clients, factor, kind):
    updates = [update(i, adapter, size) for i, (adapter, size, _) in enumerate(clients)]
    larger = [update(i, adapter, size * factor) for i, (adapter, size, _) in enumerate(clients)]
    often = dict.fromkeys(once(updates), factor)
    expected = aggregate_adapters(updates, once(updates), kind)
    ulp = np.spacing(np.abs(np.stack([u.adapter for u in updates])).max(axis=0))
    for scaled in (aggregate_adapters(larger, once(updates), kind), aggregate_adapters(updates, often, kind)):
        assert (np.abs(scaled - expected) <= ulp).all()


@settings(deadline=None, max_examples=60)
@given(COHORTS)
def test_clients_of_equal_size_weigh_the_same_as_without_weights(clients):
    updates = [update(i, adapter, 7) for i, (adapter, _, _) in enumerate(clients)]
    uniform, weighted = (aggregate_adapters(updates, once(updates), kind) for kind in ("uniform", "weighted"))
    ulp = np.spacing(np.abs(np.stack([u.adapter for u in updates])).max(axis=0))
    assert (np.abs(uniform - weighted) <= ulp).all()


def test_products_are_not_rounded_to_float32():
    assert aggregate_adapters([update(0, [230963.0], 107)], {0: 1}, "weighted").tolist() == [230963.0]


def test_aggregation_leaves_the_updates_as_they_are():
    updates = [update(1, [1.0]), update(0, [3.0])]
    assert aggregate_adapters(updates, once(updates), "uniform").tolist() == [2.0]
    assert [(u.client_id, u.adapter.tolist()) for u in updates] == [(1, [1.0]), (0, [3.0])]


def test_counts_sum_exactly_beyond_float64():
    large = 2**53
    counts = [
        ActivationCounts(zeros=(np.array([large, 1]), np.array([3])), positions=np.array([large, 5])),
        ActivationCounts(zeros=(np.array([1, 1]), np.array([4])), positions=np.array([1, 6])),
    ]
    updates = [update(i, [0.0], counts=c) for i, c in enumerate(counts)]
    total = aggregate(updates, once(updates), "uniform").counts
    assert [zeros.tolist() for zeros in total.zeros] == [[large + 1, 2], [7]]
    assert total.positions.tolist() == [large + 1, 11]
    assert all(array.dtype == np.int64 for array in [*total.zeros, total.positions])


def test_no_counts_sum_to_none():
    assert aggregate([update(0, [0.0])], {0: 1}, "uniform").counts is None


def test_loss_is_per_example():
    assert mean_loss([update(0, [0.0], 10, 1.0), update(1, [0.0], 30, 2.0)]) == 1.75


def test_num_bytes_of_an_update_are_its_adapter_and_counts():
    counts = ActivationCounts(zeros=(np.zeros(5, np.int64), np.zeros(3, np.int64)), positions=np.zeros(2, np.int64))
    assert update(0, np.zeros(10)).num_bytes == 40
    assert update(0, np.zeros(10), counts=counts).num_bytes == 40 + 8 * (5 + 3 + 2)
