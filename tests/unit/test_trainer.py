import warnings
from dataclasses import replace

import pytest
import torch

from fedpft.config import load_config
from fedpft.run.pipeline import run_environment
from fedpft.simulation.pool.client_actor import ClientActor
from fedpft.trainer import accelerator, check_devices, make_trainer, set_arithmetic


@pytest.mark.parametrize(("settings", "told"), [([], True), (["server.accelerator=cpu"], False)])
def test_a_server_that_works_on_the_cpu_beside_actors_with_gpus_says_so_unless_asked_to(monkeypatch, settings, told):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_devices(load_config(None, ["pool.gpus_per_actor=0.5", *settings]))
    assert [str(line.message).startswith("actors claim GPUs, but the server's side is") for line in caught] == [
        True
    ] * told


def test_auto_is_a_gpu_of_cuda_or_the_cpu_whatever_else_there_is(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert accelerator("auto") == "cpu"
    assert make_trainer(load_config(None, []).server, num_steps=1).strategy.root_device == torch.device("cpu", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [accelerator(setting) for setting in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["server={matmul_precision: high, deterministic: true}"], (True, True)),
        (["pool={kind: sequential, deterministic: true}"], (False, True)),
        (["pool={deterministic: true, matmul_precision: high}"], (False, False)),  # of other processes
        ([], (False, False)),
    ],
)
def test_this_process_computes_as_the_server_and_clients_in_it_want(settings, expected):
    try:
        set_arithmetic(load_config(None, settings))
        assert (torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()) == expected
    finally:
        set_arithmetic(load_config(None, []))


@pytest.mark.parametrize(("precision", "allowed"), [("high", True), ("highest", False)])
def test_an_actor_computes_products_as_the_pool_asks_and_a_run_records_it(precision, allowed):
    config = load_config(None, [f"pool.matmul_precision={precision}"])
    try:
        ClientActor("actor-0", 1, config.pool.deterministic, config.pool.matmul_precision)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
        ClientActor("actor-0", 1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        set_arithmetic(load_config(None, []))
    assert run_environment(config)["clients' matmul precision"] == precision
    in_driver = replace(config, pool=replace(config.pool, kind="sequential"))
    assert run_environment(in_driver)["clients' matmul precision"] == "highest", "the server's"
