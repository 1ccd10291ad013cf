"""Aggregations for LoRA: exact products, ranks that stay, factors that clients leave alone, and what travels."""

import numpy as np
import pytest

from fedpft.config import ConfigError, FederatedConfig, load_config
from fedpft.federated.aggregate import Aggregation
from fedpft.federated.aggregators.lora import CLIENTS_AT_ONCE, factor_pairs, orthonormal
from fedpft.federated.exchange import traffic
from fedpft.federated.messages import ClientUpdate, RoundPlan
from fedpft.federated.server_rule import held_by_server, server_rule
from fedpft.models.lora import adapter_layout, get_adapter, set_adapter, tuned_mask
from fedpft.models.weights import unpack_model
from tests.tiny import tiny_package

IN, OUT, RANK = 7, 5, 2
LAYOUT = (
    ("head.modules_to_save.weight", (3,)),
    ("x.lora_A.default.weight", (RANK, IN)),
    ("x.lora_B.default.weight", (OUT, RANK)),
    ("y.lora_A.default.weight", (RANK, OUT)),
    ("y.lora_B.default.weight", (IN, RANK)),
)
SIZE = 3 + 2 * RANK * (IN + OUT)
PAIRS = factor_pairs(LAYOUT)
SIZES = (4, 1, 7)


def adapters(n=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, SIZE)).astype(np.float32)


def products(adapter):
    factors = (pair.factors(adapter.astype(np.float64)) for pair in PAIRS)
    return [b @ a for a, b in factors]


def mean_products(sent, sizes=SIZES):
    return [np.average(each, axis=0, weights=sizes) for each in zip(*map(products, sent), strict=True)]


def play(kind, sent, sizes=SIZES, start=None, round_index=1, **settings):
    """Return the next adapter and the aggregation of these adapters."""
    config = FederatedConfig(lora_aggregation=kind, **settings)
    rule = server_rule(config, LAYOUT)
    start = np.zeros(SIZE, np.float32) if start is None else start
    tuned = rule.tuned(round_index)
    plan = RoundPlan(round_index=round_index, lr=0.1, adapter=start, count_activations=False, tuned=tuned)
    ids = range(len(sent))
    aggregation = Aggregation(plan, list(ids), dict.fromkeys(ids, 1), "weighted", rule)
    for client_id in ids:
        about = {"num_examples": sizes[client_id], "metrics": {"loss": 1.0, "seconds": 1.0}}
        aggregation.add(ClientUpdate(client_id=client_id, adapter=sent[client_id], **about))
    return aggregation.next_adapter()[0], aggregation


def relative(found, expected):
    gap = sum(((f - e) ** 2).sum() for f, e in zip(found, expected, strict=True))
    return np.sqrt(gap / sum((e**2).sum() for e in expected))


def test_separate_means_miss_the_mean_of_products_by_what_is_recorded():
    sent = adapters()
    found, aggregation = play("separate", sent)
    assert aggregation.product_error == pytest.approx(relative(products(found), mean_products(sent)), rel=1e-5)
    assert aggregation.product_error > 0.1


def test_the_recorded_error_is_the_same_however_many_clients_are_summed_at_once():
    n = 2 * CLIENTS_AT_ONCE + 3
    sent, sizes = adapters(n), np.arange(1, n + 1).tolist()
    found, aggregation = play("separate", sent, sizes)
    assert aggregation.product_error == pytest.approx(relative(products(found), mean_products(sent, sizes)), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_svd_is_the_best_of_its_rank_and_the_mean_of_the_head(seed):
    sent = adapters(seed=seed)
    found, aggregation = play("svd", sent)
    expected = mean_products(sent)
    for mine, mean in zip(products(found), expected, strict=True):
        u, s, v = np.linalg.svd(mean, full_matrices=False)
        assert mine == pytest.approx((u[:, :RANK] * s[:RANK]) @ v[:RANK], abs=1e-5)
    assert found[:3] == pytest.approx(np.average(sent[:, :3], axis=0, weights=SIZES), abs=1e-6)
    assert aggregation.product_error == pytest.approx(relative(products(found), expected), rel=1e-4)
    assert aggregation.product_error < play("separate", sent)[1].product_error


def test_svd_loses_nothing_when_the_mean_has_the_adapters_rank():
    sent = adapters()
    for pair in PAIRS:
        sent[:, pair.a] = sent[0, pair.a]
    found, _ = play("svd", sent)
    assert relative(products(found), mean_products(sent)) < 1e-6


@pytest.mark.parametrize(("kind", "round_index", "stays"), [("ffa", 1, "A"), ("ffa", 2, "A"), ("alternate", 1, "A"),
    ("alternate", 2, "B"), ("fedsvd", 2, "A")])  # fmt: skip
def test_where_one_factor_stays_the_aggregate_is_exact(kind, round_index, stays):
    start = adapters(1, seed=9)[0]
    kept = ~tuned_mask(LAYOUT, "B" if stays == "A" else "A")
    sent = np.where(kept, start, adapters())
    found, aggregation = play(kind, sent, start=start, round_index=round_index)
    assert relative(products(found), mean_products(sent)) < 1e-6
    assert aggregation.product_error < 1e-6
    if kind != "fedsvd":
        assert np.array_equal(found[kept], start[kept])


def test_fedsvd_gives_a_orthonormal_rows_and_leaves_every_product():
    adapter = adapters(1)[0]
    found = orthonormal(adapter, PAIRS)
    assert relative(products(found), products(adapter)) < 1e-6
    for pair in PAIRS:
        a, b = pair.factors(found.astype(np.float64))
        assert a @ a.T == pytest.approx(np.eye(RANK), abs=1e-6)
        gram = b.T @ b
        assert gram == pytest.approx(np.diag(np.diag(gram)), abs=1e-5)
    assert np.array_equal(found[:3], adapter[:3])
    assert orthonormal(found, PAIRS) == pytest.approx(found, abs=1e-5), "signs are fixed"


def test_an_untrained_b_of_zeros_stays_zero():
    adapter = adapters(1)[0]
    for pair in PAIRS:
        adapter[pair.b] = 0
    found = orthonormal(adapter, PAIRS)
    assert np.isfinite(found).all()
    assert all(not product.any() for product in products(found))


@pytest.mark.parametrize(("kind", "up", "down"), [("separate", 1, 1), ("ffa", 0.5, 0.5), ("svd", 1, 1),
    ("fedsvd", 0.5, 1), ("alternate", 0.5, 1)])  # fmt: skip
def test_what_travels_is_what_was_tuned_and_what_may_be_new(kind, up, down):
    lora = SIZE - 3
    found = traffic(FederatedConfig(lora_aggregation=kind), LAYOUT)
    expected = {"up": 4 * (3 + up * lora), "down": 4 * (3 + down * lora)}
    assert {name.split("_")[1]: value for name, value in found.items()} == pytest.approx(expected, abs=4)


@pytest.mark.parametrize(("settings", "held"), [([], None), (["aggregator.kind=norm_bound"], None),
    (["aggregator.kind=median"], 40 * SIZE), (["lora_aggregation=svd"], 40 * SIZE)])  # fmt: skip
def test_the_plan_says_what_an_aggregator_holds_that_needs_all_updates(settings, held):
    config = load_config(None, [f"federated.{setting}" for setting in settings]).federated
    assert held_by_server(config, LAYOUT).get("bytes_held_by_server") == held


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lora_aggregation": "svd", "aggregator.kind": "median"}, "federated.aggregator.kind"),
        ({"lora_aggregation": "svd", "server.kind": "adam"}, "federated.server.kind"),
        ({"lora_aggregation": "fedsvd", "server.lr": 0.5}, "federated.server.kind"),
        ({"lora_aggregation": "fedsvd", "client.kind": "scaffold"}, "federated.client.kind"),
        ({"lora_aggregation": "fedsvd", "aggregator.kind": "centered_clipping"}, "federated.aggregator.kind"),
    ],
)
def test_what_has_no_meaning_together_is_refused(settings, key):
    with pytest.raises(ConfigError, match=rf"^{key}: found"):
        load_config(None, [f"federated.{name}={value}" for name, value in settings.items()])


def test_a_real_models_products_are_what_its_layers_add():
    model = unpack_model(tiny_package().proxy)
    layout = adapter_layout(model)
    pairs = factor_pairs(layout)
    adapter = np.random.default_rng(0).normal(size=len(get_adapter(model))).astype(np.float32)
    set_adapter(model, adapter)
    deltas = [module.get_delta_weight("default").detach().numpy() / module.scaling["default"] for _, module in sorted(
        (name, module) for name, module in model.named_modules() if hasattr(module, "get_delta_weight"))]  # fmt: skip
    assert len(pairs) == len(deltas) > 0
    for pair, delta in zip(pairs, deltas, strict=True):
        a, b = pair.factors(adapter)
        assert b @ a == pytest.approx(delta, abs=1e-4)
