"""Ranks by client: a client of a lower rank is one whose adapter has that rank, and the mean of all is exact."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import ConfigError, LoraConfig, load_config
from fedpft.federated.client import LocalClient
from fedpft.federated.client_ranks import bytes_left_out, client_ranks
from fedpft.federated.exchange import make_exchange, traffic
from fedpft.federated.messages import ClientUpdate, RoundPlan
from fedpft.models.lora import adapter_layout, attach_lora, get_adapter, rank_mask
from tests.tiny import tiny_fm, tiny_package

SVD = "federated.lora_aggregation=svd"


def config(*overrides):
    return load_config(None, ["lora.rank=4", SVD, "lora.ranks=[4, 1, 1]", *overrides])


def model_of(rank):
    """Return a tiny model whose LoRA is scaled by 2."""
    return attach_lora(tiny_fm("bert", num_labels=2), LoraConfig(rank=rank, lora_alpha=2 * rank, dropout=0.1), seed=0)


def plan_with(adapter):
    return RoundPlan(round_index=1, lr=1e-2, adapter=adapter, count_activations=False)


@pytest.mark.parametrize("start", [0, 1])
def test_a_client_of_a_lower_rank_trains_as_if_its_adapter_had_that_rank(start):
    model, small = model_of(3), model_of(2)
    kept = rank_mask(adapter_layout(model), 2)
    adapter = get_adapter(model)
    adapter += start * np.random.default_rng(0).normal(0, 0.1, len(adapter)).astype(np.float32)
    place = LocalClient(replace(tiny_package(model=model), ranks={0: 2, 1: 3, 2: 2}))
    found = place.fit(plan_with(adapter), 0).adapter
    expected = LocalClient(tiny_package(model=small)).fit(plan_with(adapter[kept]), 0).adapter
    assert found[kept] == pytest.approx(expected, abs=2e-6)
    assert not np.array_equal(found[kept], adapter[kept])
    assert not found[~kept].any()
    together = place.fit_together(plan_with(adapter), [0, 1, 2])
    assert np.array_equal(together[0].adapter, found)
    assert together[1].adapter[~kept].any(), "rank 3 has all"


def test_ranks_are_dealt_out_in_turn_in_an_order_that_the_clients_seed_draws():
    ranks = client_ranks(config("federated.seed=1"), 10)
    assert list(ranks) == list(range(10))
    assert Counter(ranks.values()) == {4: 4, 1: 6}
    assert ranks == client_ranks(config("federated.seed=1", "seed=3"), 10)
    assert ranks != client_ranks(config("federated.seed=2"), 10)
    assert client_ranks(config("lora.ranks=[]"), 10) == {}


def test_what_is_zero_does_not_count_as_traffic():
    layout, ranks = adapter_layout(model_of(4)), {0: 4, 1: 1}
    sizes = [
        sum(np.prod(shape) for name, shape in adapter_layout(model_of(rank)) if "lora_" in name) for rank in (4, 1)
    ]
    left_out = bytes_left_out(ranks, layout)
    assert left_out == {0: 0, 1: 4 * (sizes[0] - sizes[1])}
    whole, found = (traffic(config().federated, layout, which) for which in ({}, ranks))
    assert all(whole[name] - found[name] == left_out[1] // 2 for name in whole)
    exchange = make_exchange(config().federated, np.ones(2), layout, ranks=ranks)
    plan = plan_with(get_adapter(model_of(4)))
    assert exchange.bytes_down(plan, {0: 1, 1: 2}) == 2 * plan.adapter.nbytes - left_out[1]
    sent = ClientUpdate(client_id=1, num_examples=1, metrics={}, adapter=plan.adapter)
    assert exchange.received(sent, plan).num_bytes == plan.adapter.nbytes - left_out[1]


@pytest.mark.parametrize(("settings", "allowed"), [(["lora.ranks=[5]"], "from 1 to lora.rank = 4"),
    (["lora.ranks=[0]"], "from 1 to"), (["federated.lora_aggregation=ffa"], "lora_aggregation = svd"),
    (["federated.adversary.kind=sign_flip"], "adversary.kind = sign_flip")])  # fmt: skip
def test_ranks_that_cannot_be_are_refused(settings, allowed):
    with pytest.raises(ConfigError, match=rf"^lora\.ranks: found .*{allowed}"):
        config(*settings)
