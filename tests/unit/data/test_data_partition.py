import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpft.config import ConfigError
from fedpft.data import partition as partition_module
from fedpft.data.partition import Partition, make_partition

GOLDEN = Path(__file__).parents[3].parent / "shared" / "golden" / "fl_components.json"


@st.composite
def deals(draw):
    labels = np.array(draw(st.lists(st.integers(0, 5), min_size=1, max_size=60)))
    num_clients = draw(st.integers(1, len(labels)))
    kind = draw(st.sampled_from(["iid", "dirichlet", "shards"]))
    num_labels = len(np.unique(labels))
    return labels, {
        "num_clients": num_clients,
        "kind": kind,
        "dirichlet_alpha": draw(st.sampled_from([1e-3, 0.1, 1.0, 100.0])),
        "concentration": draw(st.sampled_from(["total", "per_label"])),
        "labels_per_client": draw(st.integers(-(-num_labels // num_clients), 6)),
        "size_imbalance": draw(st.sampled_from([0.0, 0.5, 3.0])),
    }


def deal(labels, seed=0, **arguments) -> Partition:
    return make_partition(labels, rng=np.random.default_rng(seed), **arguments)


@settings(max_examples=150, deadline=None)
@given(deals(), st.integers(0, 5))
def test_every_example_has_one_owner_and_nobody_is_empty(case, seed):
    labels, arguments = case
    partition = deal(labels, seed, **arguments)
    assert sorted(partition.order.tolist()) == list(range(len(labels)))
    assert partition.num_clients == arguments["num_clients"]
    assert partition.sizes.min() >= 1
    shards = [partition.shard(k) for k in range(partition.num_clients)]
    assert np.array_equal(np.concatenate(shards), partition.order)


@settings(max_examples=40, deadline=None)
@given(deals(), st.integers(0, 5))
def test_the_same_rng_gives_the_same_partition(case, seed):
    labels, arguments = case
    first, second = deal(labels, seed, **arguments), deal(labels, seed, **arguments)
    assert np.array_equal(first.order, second.order)
    assert np.array_equal(first.offsets, second.offsets)


@settings(max_examples=60, deadline=None)
@given(deals())
def test_shards_hold_at_most_k_labels(case):
    labels, arguments = case
    arguments["kind"] = "shards"
    histogram = deal(labels, **arguments).label_histogram(labels, 6)
    assert (histogram > 0).sum(axis=1).max() <= arguments["labels_per_client"]


@given(st.integers(1, 50), st.integers(0, 300), st.sampled_from(["iid", "dirichlet"]))
@settings(max_examples=60, deadline=None)
def test_equal_sizes_differ_by_at_most_one(num_clients, extra, kind):
    labels = np.arange(num_clients + extra) % 3
    sizes = deal(labels, num_clients=num_clients, kind=kind).sizes
    assert sizes.max() - sizes.min() <= 1


@settings(max_examples=60, deadline=None)
@given(deals(), st.integers(0, 5))
def test_a_histogram_adds_up_to_sizes_and_labels(case, seed):
    labels, arguments = case
    partition = deal(labels, seed, **arguments)
    histogram = partition.label_histogram(labels, 6)
    assert histogram.sum(axis=1).tolist() == partition.sizes.tolist()
    assert histogram.sum(axis=0).tolist() == np.bincount(labels, minlength=6).tolist()


@settings(max_examples=60, deadline=None)
@given(deals(), st.integers(0, 5))
def test_labels_are_names_only(case, seed):
    """Other numbers in the same order give the same deal: no label is special."""
    labels, arguments = case
    renamed = labels * 1000 - 7
    assert np.array_equal(deal(labels, seed, **arguments).order, deal(renamed, seed, **arguments).order)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["al", "bo", "cy", ""]), min_size=1, max_size=40))
def test_natural_deals_every_owner_its_own_in_order(owners):
    owners = np.array(owners)
    names = np.unique(owners)
    partition = deal(np.zeros(len(owners), int), num_clients=len(names), kind="natural", owners=owners)
    for client, name in enumerate(names):
        assert partition.shard(client).tolist() == np.flatnonzero(owners == name).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10), st.integers(1, 5), st.integers(0, 5), st.sampled_from([0.1, 1.0, 100.0]))
def test_concentrations_are_the_same_law_when_labels_are_equally_frequent(num_clients, num_labels, seed, alpha):
    """Dir(alpha p) with p = 1 / C is Dir(alpha' 1) with alpha' = alpha / C, draw by draw."""
    labels = np.arange(num_labels * 12) % num_labels
    orders = [
        deal(labels, seed, num_clients=num_clients, kind="dirichlet", dirichlet_alpha=a, concentration=c).order
        for a, c in ((alpha, "total"), (alpha * (1 / num_labels), "per_label"))
    ]
    assert np.array_equal(*orders)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.integers(1, 30),
    st.sampled_from(["iid", "dirichlet", "shards"]),
    st.integers(1, 4),
)
def test_a_deal_either_works_or_says_which_setting_cannot(labels, num_clients, kind, labels_per_client):
    labels = np.array(labels)
    possible = num_clients <= len(labels)
    if kind == "shards":
        possible &= num_clients * labels_per_client >= len(np.unique(labels))
    arguments = {"num_clients": num_clients, "kind": kind, "labels_per_client": labels_per_client}
    if possible:
        assert deal(labels, **arguments).sizes.min() >= 1
    else:
        with pytest.raises(ConfigError, match=r"^federated\.[a-z_.]+: found \d+, allowed: [^\n]+$"):
            deal(labels, **arguments)


def test_size_imbalance_is_the_sigma_of_log_sizes():
    sizes = deal(np.zeros(200_000, int), num_clients=1000, kind="iid", size_imbalance=0.5).sizes
    assert np.log(sizes).std() == pytest.approx(0.5, abs=0.05)


def test_another_seed_gives_another_partition():
    labels = np.arange(100) % 4
    orders = [deal(labels, seed, num_clients=5, kind="iid").order for seed in (0, 1)]
    assert not np.array_equal(*orders)


def test_label_histogram_counts_each_clients_labels():
    labels = np.array([0, 2, 2, 1])
    partition = Partition(np.array([1, 2, 0, 3]), np.array([0, 2, 4]))
    assert partition.label_histogram(labels, 3).tolist() == [[0, 0, 2], [1, 1, 0]]


@pytest.mark.parametrize(("listed", "clients"), [(2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_blocks_hold_the_clients_one_after_the_other(monkeypatch, listed, clients):
    monkeypatch.setattr(partition_module, "MAX_LISTED_CLIENTS", listed)
    labels = np.arange(40) % 3
    partition = deal(labels, num_clients=5, kind="iid", size_imbalance=0.5)
    blocks = list(partition.blocks())
    assert [block.num_clients for block in blocks] == clients
    shards = [block.shard(k).tolist() for block in blocks for k in range(block.num_clients)]
    assert shards == [partition.shard(k).tolist() for k in range(5)]
    counts = np.concatenate([block.label_histogram(labels, 3) for block in blocks])
    assert np.array_equal(counts, partition.label_histogram(labels, 3))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards", "natural"])
def test_of_a_client_four_bytes_are_held_and_of_an_example_too(kind):
    partition = deal(np.arange(100) % 4, num_clients=10, kind=kind, owners=np.arange(100) % 10)
    assert (partition.order.nbytes, partition.offsets.nbytes) == (400, 44)


def test_a_shard_is_a_view():
    partition = deal(np.zeros(10, int), num_clients=3, kind="iid")
    assert np.shares_memory(partition.shard(2), partition.order)
    with pytest.raises(IndexError, match="3 clients"):
        partition.shard(3)


def test_natural_owners_keep_their_examples():
    owners = np.array(["bo", "al", "bo", "cy"])
    partition = deal(np.zeros(4, int), num_clients=3, kind="natural", owners=owners)
    assert [partition.shard(k).tolist() for k in range(3)] == [[1], [0, 2], [3]]


def test_natural_says_both_numbers_when_they_differ():
    with pytest.raises(ConfigError, match=r"federated\.num_clients: found 5, allowed: 2"):
        deal(np.zeros(3, int), num_clients=5, kind="natural", owners=np.array([1, 2, 1]))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards"])
def test_more_clients_than_examples_is_an_error(kind):
    with pytest.raises(ConfigError, match=r"federated\.num_clients: found 4, allowed: at most 3 examples"):
        deal(np.array([0, 1, 0]), num_clients=4, kind=kind)


def test_too_few_places_for_the_labels_is_an_error():
    with pytest.raises(ConfigError, match="labels_per_client: found 1, allowed: at least 2"):
        deal(np.arange(4), num_clients=2, kind="shards", labels_per_client=1)


def test_unknown_kind_is_an_error():
    with pytest.raises(ConfigError, match=r"federated\.partition\.kind"):
        deal(np.arange(4), num_clients=2, kind="random")


def test_total_concentration_is_less_even_than_per_label():
    labels = np.arange(1000) % 10
    entropies = [
        statistics(labels, num_clients=20, kind="dirichlet", dirichlet_alpha=2.0, concentration=concentration)[0]
        for concentration in ("total", "per_label")
    ]
    assert entropies[0] < entropies[1] - 0.3


def statistics(labels, num_seeds=10, **arguments):
    """Mean label entropy of the clients (nats) and mean total variation from the global law, over seeds."""
    values = []
    for seed in range(num_seeds):
        counts = deal(labels, seed, **arguments).label_histogram(labels, 10)
        laws = counts / counts.sum(axis=1, keepdims=True)
        entropy = -(laws * np.log(np.where(laws > 0, laws, 1))).sum(axis=1)
        distance = np.abs(laws - counts.sum(axis=0) / counts.sum()).sum(axis=1) / 2
        values.append((entropy.mean(), distance.mean()))
    return np.mean(values, axis=0)


# The authors' IID and shard figures are means over 10 seeds; their Dirichlet figures are one (slow) draw, hence wider.
# At alpha 0.1 theirs searches for laws that happen to fit together, ours redistributes: not compared.
@pytest.mark.parametrize(
    ("key", "arguments", "entropy_tolerance", "distance_tolerance"),
    [
        ("iid_c10", {"num_clients": 10, "kind": "iid"}, 0.01, 0.01),
        ("iid_c30", {"num_clients": 30, "kind": "iid"}, 0.02, 0.015),
        ("iid_c10_imb0.5", {"num_clients": 10, "kind": "iid", "size_imbalance": 0.5}, 0.03, 0.02),
        ("div_c10_0.2", {"num_clients": 10, "kind": "shards", "labels_per_client": 2}, 1e-9, 1e-9),
        ("div_c20_0.3", {"num_clients": 20, "kind": "shards", "labels_per_client": 3}, 1e-2, 1e-2),
        ("dir_c10_1.0", {"num_clients": 10, "kind": "dirichlet", "dirichlet_alpha": 1.0}, 0.15, 0.08),
        ("dir_c10_5.0", {"num_clients": 10, "kind": "dirichlet", "dirichlet_alpha": 5.0}, 0.2, 0.08),
        ("dir_c10_100.0", {"num_clients": 10, "kind": "dirichlet", "dirichlet_alpha": 100.0}, 0.05, 0.03),
        ("dir_c100_1.0", {"num_clients": 100, "kind": "dirichlet", "dirichlet_alpha": 1.0}, 0.1, 0.05),
    ],
)
def test_statistics_agree_with_the_authors_library(key, arguments, entropy_tolerance, distance_tolerance):
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is absent: the authors' statistics are not part of the repository")
    golden = json.loads(GOLDEN.read_text())
    expected = golden["partitioners"][key]
    expected = {name: value[0] for name, value in expected.get("over_10_seeds", {}).items()} or expected
    entropy, distance = statistics(np.array(golden["labels"]), **arguments)
    assert entropy == pytest.approx(expected["mean_label_entropy"], abs=entropy_tolerance)
    assert distance == pytest.approx(expected["mean_tv_from_global"], abs=distance_tolerance)
