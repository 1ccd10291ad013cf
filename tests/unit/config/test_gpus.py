import pytest

from fedpft.config import load_config
from fedpft.config.gpus import driver_claim, server_claim

ONE_A_GPU, QUARTERS, PACKED = "gpus_per_actor=1", "gpus_per_actor=0.25", "gpus_per_actor=auto"


@pytest.mark.parametrize(
    ("num_gpus", "pool", "server", "claim"),
    [
        (4, ONE_A_GPU, "", 1), (4, QUARTERS, "", 1), (4, PACKED, "", 1), (4, QUARTERS, "devices=2", 2),
        (1, QUARTERS, "", 0.25), (1, "gpus_per_actor=0.6", "", 0.4), (1, PACKED, "", 0.5),  # the only one, in parts
        (1, ONE_A_GPU, "", 0), (2, QUARTERS, "devices=2", 0),  # the actors need it, or the server needs all
        (0, QUARTERS, "", 0), (4, QUARTERS, "accelerator=cpu", 0),  # it uses none
        (4, "gpus_per_actor=0", "", 0), (4, "kind=sequential", "", 0),  # nobody else uses one
        (4, QUARTERS, "num_gpus=0", 0), (4, QUARTERS, "num_gpus=0.5", 0.5), (4, "kind=sequential", "num_gpus=2", 2),
    ],
)  # fmt: skip
def test_the_server_claims_what_it_uses_and_leaves_an_actors_worth(num_gpus, pool, server, claim):
    settings = [f"pool.{pool}", "align.layers.batch_size=4", *([f"server.{server}"] if server else [])]
    config = load_config(None, settings)
    assert server_claim(config, num_gpus) == pytest.approx(claim)
    if claim and config.pool.kind == "ray":
        assert num_gpus - claim >= min(config.pool.gpu_claim, 0.5)


@pytest.mark.parametrize(
    ("settings", "at_once", "claim"),
    [
        (["pool.kind=sequential"], None, 1), (["pool.kind=sequential"], 6, 0.3333),
        (["pool={kind: sequential, accelerator: cpu}", "server.accelerator=cpu"], None, 0),
        (["pool={kind: sequential, accelerator: cpu}"], None, 1),
        (["pool.kind=sequential", "server.num_gpus=0"], None, 0),
        (["pool.gpus_per_actor=0.5"], 6, 1),
    ],
)  # fmt: skip
def test_a_trials_driver_has_its_share(settings, at_once, claim):
    assert driver_claim(load_config(None, settings), 2, at_once) == claim
    assert driver_claim(load_config(None, settings), 0, at_once) == 0
