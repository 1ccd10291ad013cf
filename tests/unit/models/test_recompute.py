"""Activations that are computed again in the backward pass."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpft.config import Config, ConfigError, FederatedConfig, LoraConfig, PoolConfig
from fedpft.federated.client import LocalClient
from fedpft.federated.messages import RoundPlan
from fedpft.federated.step_costs import step_costs
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import adapter_parameters, attach_lora, get_adapter
from fedpft.models.recompute import recompute_layers, recomputed_layers
from fedpft.models.weights import unpack_model
from tests.tiny import ONE_FAMILY_PER_ROW, tiny_batch, tiny_fm, tiny_lm, tiny_package


def gradients(model, batch):
    torch.manual_seed(0)
    model.train()(**batch).loss.backward()
    return {name: parameter.grad for name, parameter in adapter_parameters(model).items()}


@pytest.mark.parametrize("family", [*ONE_FAMILY_PER_ROW, "mpnet"])
def test_gradients_have_the_same_bits_with_dropout_too(family):
    kept = attach_lora(tiny_fm(family), LoraConfig(rank=2, dropout=0.1), seed=0)
    again, passes = copy.deepcopy(kept), []
    recompute_layers(again)
    find_ffns(again)[-1].up.register_forward_hook(lambda *_: passes.append("pass"))
    batch = tiny_batch(family) | {"labels": torch.tensor([0, 1, 2, 0])}
    expected, found = gradients(kept, batch), gradients(again, batch)
    assert len(recomputed_layers(again)) == 3
    assert len(passes) == 2
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_client_sends_the_same_update_and_counts_each_activation_once(family):
    package = tiny_package(family)
    again = replace(package, settings=replace(package.settings, recomputes=True))
    adapter = get_adapter(unpack_model(package.proxy))
    plan = RoundPlan(round_index=1, lr=1e-2, adapter=adapter, count_activations=True)
    expected, found = (LocalClient(one).fit(plan, 0) for one in (package, again))
    assert np.array_equal(found.adapter, expected.adapter)
    assert found.metrics["loss"] == expected.metrics["loss"]
    assert found.counts.positions.tolist() == expected.counts.positions.tolist()
    for ours, theirs in zip(found.counts.zeros, expected.counts.zeros, strict=True):
        assert np.array_equal(ours, theirs)


def costs(num_layers, *, recomputes, family="bert"):
    model = attach_lora(tiny_fm(family, num_hidden_layers=num_layers), LoraConfig(rank=2), seed=0)
    batch = tiny_batch(family) | {"labels": torch.zeros(4, dtype=torch.long)}
    return step_costs(model, batch, any_length=False, recomputes=recomputes).counts[0]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_further_layer_keeps_its_input_alone_and_runs_forward_twice(family):
    few, many = (costs(layers, recomputes=True, family=family) for layers in (3, 6))
    B, T, H = 4, 7, 16
    assert many.activation_bytes - few.activation_bytes == 3 * 4 * B * T * H
    kept_few, kept_many = (costs(layers, recomputes=False, family=family) for layers in (3, 6))
    assert few.activation_bytes < kept_few.activation_bytes
    layer, twice = (more.flops - less.flops for less, more in ((kept_few, kept_many), (few, many)))
    assert 1.2 * layer < twice < 1.6 * layer


def test_a_language_model_keeps_no_cache_of_keys():
    model = tiny_lm("llama")
    recompute_layers(model)
    batch = tiny_batch("llama")
    assert model.train()(**batch, labels=batch["input_ids"]).past_key_values is None


def test_it_goes_with_one_client_at_a_time():
    federated = FederatedConfig(gradient_checkpointing=True)
    for together in (2, "auto"):
        with pytest.raises(ConfigError, match=rf"pool\.clients_per_batch: found .*{together}.*gradient_checkpointing"):
            Config(federated=federated, pool=PoolConfig(clients_per_batch=together))
