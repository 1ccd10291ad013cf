"""Parts of a round in combination: each runs, whoever trains with whom, and goes on exactly; or is refused at once."""

from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import load_config
from fedpft.federated.adversary.clients import draw_adversaries
from fedpft.federated.broadcast import local_settings
from fedpft.federated.client_ranks import client_ranks
from fedpft.federated.control_variates import StatesInMemory
from fedpft.federated.driver import Driver, ServerState
from fedpft.federated.exchange import make_exchange
from fedpft.federated.messages import LocalSettings
from fedpft.federated.observer import SilentObserver
from fedpft.federated.pool import SequentialPool
from fedpft.federated.server_rule import server_rule
from fedpft.methods.base import FixedProxy
from fedpft.models.lora import adapter_layout, get_adapter
from fedpft.models.weights import unpack_model
from tests.fakes import FakeTracker
from tests.tiny import tiny_package

SHARDS = (2, 5, 3, 4, 2, 6, 3, 4)
TINY = (
    *("federated={num_clients: 8, clients_per_round: 7, rounds: 3, lr: 1e-2, batch_size: 4}", "lora.rank=2"),
    *("pool={kind: sequential, accelerator: cpu}", "federated.aggregator={num_byzantine: 1, norm: 0.1}"),
    "federated.adversary.fraction=0.25",
)
DIMENSIONS = {
    "federated.client.kind": ("sgd", "prox", "scaffold", "fednova"),
    "federated.aggregator.kind": (
        *("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "norm_bound"),
        "centered_clipping",
    ),
    "federated.server.kind": ("momentum", "adam", "yogi", "adagrad"),
    "federated.lora_aggregation": ("ffa", "svd", "fedsvd", "alternate"),
    "federated.sampling": ("md", "full", "poisson", "power_of_choice"),
    "federated.adversary.kind": ("sign_flip", "gaussian", "alie", "inner_product", "min_max"),
    "federated.accumulate": ("2",),
    "federated.client_eval_ratio": ("0.5",),
}
"""Key -> values that are not the default, of all that has a say in what a round makes of the adapter."""

COMBINATIONS = (
    ("scaffold", "centered_clipping", "adam", "alternate", "poisson", "alie"),
    ("scaffold", "geometric_median", "yogi", "ffa", "md", "sign_flip"),
    ("fednova", "mean", "avg", "svd", "power_of_choice", "none"),
    ("prox", "krum", "avg", "fedsvd", "full", "min_max"),
    ("fednova", "bulyan", "momentum", "alternate", "uniform", "inner_product"),
)
"""Few that meet often: those with memories, with fewer numbers on their way, and with other factors."""


def driver(overrides, states, clients_per_batch):
    """Return a driver of real clients on a tiny model, and the adapter to begin with."""
    config = load_config(None, [*TINY, *overrides, f"pool.clients_per_batch={clients_per_batch}"])
    settings = vars(local_settings(config))
    package = tiny_package(shard_sizes=SHARDS, **settings)
    assert package.settings == LocalSettings(**settings)
    ranks = client_ranks(config, len(SHARDS))
    package = replace(package, ranks=ranks)
    model, pool = unpack_model(package.proxy), SequentialPool()
    pool.broadcast(package)
    layout = adapter_layout(model)
    made = Driver(
        config=config.federated,
        seed=0,
        partition=package.partition,
        num_neurons=(),
        method=FixedProxy(),
        pool=pool,
        rule=server_rule(config.federated, layout),
        exchange=make_exchange(config.federated, package.partition.sizes, layout, states, ranks),
        evaluate=lambda adapter: {"fm": float(adapter.sum())},
        evaluation_interval=1,
        adversaries=draw_adversaries(config, len(SHARDS)),
        tracker=FakeTracker(),
        observer=SilentObserver(),
    )
    return made, get_adapter(model)


def play(overrides):
    """Run all rounds one by one; then the first, and the rest in another process's place, clients together."""
    states = StatesInMemory()
    whole, start = driver(overrides, states, clients_per_batch=1)
    begun = whole.run_round(ServerState(rounds_done=0, adapter=start))
    straight = whole.run(begun)
    rest, _ = driver(overrides, states, clients_per_batch=3)
    return start, straight, rest.run(begun), whole.tracker.records


@pytest.mark.parametrize("kinds", COMBINATIONS, ids=" ".join)
def test_parts_in_combination_go_on_exactly_whoever_trains_with_whom(kinds):
    overrides = [f"{key}={kind}" for key, kind in zip(list(DIMENSIONS)[: len(kinds)], kinds, strict=True)]
    overrides += ["lora.ranks=[2, 1, 1]"] if kinds[-1] == "none" else []
    start, straight, resumed, records = play(overrides)
    assert np.array_equal(straight.adapter, resumed.adapter)
    assert straight.arrays.keys() == resumed.arrays.keys()
    assert all(np.array_equal(value, resumed.arrays[name]) for name, value in straight.arrays.items())
    assert not np.array_equal(straight.adapter, start)
    assert not [record["failures"] for record in records if "failures" in record]
