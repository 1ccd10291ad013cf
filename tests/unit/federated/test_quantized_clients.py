"""Clients whose frozen weights are quantised train as on the weights for which the codes stand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from fedpft.config import ConfigError, LoraConfig, load_config
from fedpft.federated.broadcast import check_quantize, packed_changes, packed_proxy
from fedpft.federated.client import LocalClient
from fedpft.federated.pool import SequentialPool
from fedpft.federated.step_costs import step_costs
from fedpft.models import quantize
from fedpft.models.lora import attach_lora
from fedpft.models.quantize import pack_quantized, quantizable
from fedpft.models.weights import pack_model, unpack_model
from fedpft.privacy.dp_sgd import ExampleNoise
from tests.tiny import tiny_batch, tiny_fm
from tests.unit.federated.test_clients_together import bits, package_of, plan_for


def pair(family, kind="nf4", **settings):
    """Return a package in few bits, and one in float of the weights for which these stand."""
    package = package_of(family, **settings)
    model, other = unpack_model(package.proxy), unpack_model(package.proxy)
    few = replace(package, proxy=pack_quantized(model, kind))
    made = unpack_model(few.proxy)
    for name in quantizable(model):
        layer = other.get_submodule(name)
        weight = made.get_submodule(name).weight(layer.weight.dtype)
        layer.weight.data = weight.T.clone() if isinstance(layer, Conv1D) else weight
    return few, replace(package, proxy=pack_model(other))


@pytest.mark.parametrize(("family", "kind"), [("bert", "nf4"), ("bert", "int8"), ("gpt2", "nf4"), ("phi3", "nf4")])
def test_an_update_and_its_counts_are_those_on_the_weights_for_which_the_codes_stand(family, kind):
    few, full = pair(family, kind)
    plan = plan_for(few)
    found, expected = (LocalClient(package).fit(plan, 1) for package in (few, full))
    np.testing.assert_allclose(found.adapter, expected.adapter, rtol=0, atol=2e-4)  # AdamW's steps are of 1e-2
    assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-5)
    for ours, theirs in zip(found.counts.zeros, expected.counts.zeros, strict=True):
        assert np.abs(ours - theirs).sum() <= 0.01 * theirs.sum()
    assert found.counts.positions.tolist() == expected.counts.positions.tolist()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "deberta-v2", "modernbert"])
def test_clients_that_train_together_get_the_bits_that_each_gets_alone(family):
    few, _ = pair(family)
    plan = plan_for(few)
    together = LocalClient(few).fit_together(plan, range(7))
    alone = LocalClient(few)
    assert [bits(update) for update in together] == [bits(alone.fit(plan, client)) for client in range(7)]


def test_computing_layers_again_gives_the_same_bits_and_counts_once():
    few, _ = pair("llama")
    again, plan = replace(few, settings=replace(few.settings, recomputes=True)), plan_for(few)
    assert bits(LocalClient(again).fit(plan, 1)) == bits(LocalClient(few).fit(plan, 1))


def test_with_dp_of_examples_gradients_are_those_on_the_weights_for_which_the_codes_stand():
    few, full = pair("bert")
    noise, plan = ExampleNoise(clip=0.5, noise_multiplier=0.1, batch_size=3), plan_for(few, count=False)
    found, expected = (
        LocalClient(replace(package, settings=replace(package.settings, example_noise=noise))).fit(plan, 1)
        for package in (few, full)
    )
    np.testing.assert_allclose(found.adapter, expected.adapter, rtol=0, atol=2e-4)
    assert found.metrics["clipped"] == expected.metrics["clipped"]


@pytest.mark.parametrize("settings", [{"precision": "bf16-mixed"}, {"frozen_dtype": "bfloat16"}])
def test_in_bfloat16_products_are_those_of_bfloat16_weights(settings):
    if "frozen_dtype" in settings:
        model = tiny_fm("llama", num_labels=2).to(torch.bfloat16)
        settings = settings | {"model": attach_lora(model, LoraConfig(rank=2, lora_alpha=4, dropout=0.1), seed=0)}
    few, full = pair("llama", **settings)
    plan = plan_for(few, count=False)
    found, expected = (LocalClient(package).fit(plan, 1) for package in (few, full))
    assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-2)
    moved = np.linalg.norm(expected.adapter - plan.adapter)
    assert np.linalg.norm(found.adapter - expected.adapter) < 0.1 * moved


def test_a_fresh_place_after_a_failure_has_the_changed_weights(monkeypatch):
    package, config = package_of("bert"), load_config(None, ["pool.quantize=int8"])
    model = unpack_model(package.proxy)
    few = replace(package, proxy=packed_proxy(config, model))
    changes = {name: 1.5 * value for name, value in package.proxy.weights.items() if "layer.1.output.dense" in name}
    plan, pool = plan_for(few), SequentialPool()
    pool.broadcast(few)
    pool.replace_weights(packed_changes(config, model, changes))
    (expected,) = pool.run(plan, [1])
    fit, calls = LocalClient.fit, []

    def failing(self, *args):
        calls.append(self)
        if len(calls) == 1:
            raise ValueError("once")
        return fit(self, *args)

    monkeypatch.setattr(LocalClient, "fit", failing)
    (found,) = pool.run(plan, [1])
    assert found.attempts == 2
    assert bits(found) == bits(expected)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_step_costs_the_same_flops_and_activations_and_less_memory(kind):
    package = package_of("llama")
    model = unpack_model(package.proxy)
    batch = tiny_batch("llama") | {"labels": torch.zeros(4, dtype=torch.long)}
    full, few = (step_costs(model, batch, quantize=how) for how in (None, kind))
    assert few.counts == full.counts
    assert few.fixed_bytes - full.fixed_bytes == pack_quantized(model, kind).num_bytes - package.proxy.num_bytes


def test_an_actor_that_cannot_compute_the_codes_says_so_when_it_gets_them(monkeypatch):
    few, _ = pair("bert")

    def refuse(kind, device):
        raise ConfigError(f"pool.quantize: found {kind!r} on {device}")

    monkeypatch.setattr(quantize, "check_quantizer", refuse)
    with pytest.raises(ConfigError, match=r"pool\.quantize: found 'nf4' on cpu"):
        LocalClient(few)
    LocalClient(package_of("bert"))


@pytest.mark.parametrize("kind", ["ray", "sequential"])
def test_the_server_looks_before_any_actor_starts(kind, monkeypatch):
    looked = []
    monkeypatch.setattr("fedpft.federated.broadcast.check_quantizer", lambda *found: looked.append(found))
    check_quantize(load_config(None, [f"pool.kind={kind}"]))
    assert looked == []
    check_quantize(load_config(None, [f"pool.kind={kind}", "pool.accelerator=cpu", "pool.quantize=int8"]))
    assert looked == [("int8",), *([("int8", "cpu")] if kind == "sequential" else [])]
