"""A head with standardized inputs is the same function, before tuning and after, and learns in fewer steps."""

import copy
from dataclasses import asdict

import numpy as np
import pytest
import torch

from fedpft.align.head_inputs import measure_head_inputs
from fedpft.align.public import PublicData
from fedpft.config import ConfigError, LoraConfig, ServerConfig
from fedpft.federated.client import LocalClient
from fedpft.federated.messages import RoundPlan
from fedpft.models.lora import attach_lora, get_adapter, set_adapter, without_adapter
from fedpft.models.standardized_head import StandardizedLinear, fold, standardize, standardize_head
from fedpft.models.weights import pack_model, unpack_model
from tests.tiny import FAMILIES, tiny_batch, tiny_fm, tiny_package

WITHOUT_BIAS = {"gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "modernbert"}
WITHOUT_BIAS |= {"olmo2", "opt", "phi3", "qwen2", "qwen3", "smollm3"}
"""Families whose head's first layer has none."""


def rows_of(family, number=24):
    batch = tiny_batch(family, batch_size=number)
    return [{name: value[row] for name, value in batch.items()} for row in range(number)]


def public_of(family):
    return PublicData(dataset=rows_of(family), collate=torch.utils.data.default_collate)


def measured(fm, family, public=None):
    return asdict(measure_head_inputs(fm, public or public_of(family), ServerConfig(accelerator="cpu"), seed=0))


def standardized(family):
    """Return an FM as it is, and one whose head's inputs are standardized."""
    plain = tiny_fm(family).eval()
    fm = copy.deepcopy(plain)
    standardize_head(fm, **measured(fm, family))
    return plain, fm


@torch.no_grad()
def logits(model, family):
    return model(**tiny_batch(family)).logits


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT_BIAS])
def test_the_fm_goes_on_saying_the_same_and_a_tuned_head_is_saved_as_a_plain_one(family):
    plain, fm = standardized(family)
    assert torch.allclose(logits(fm, family), logits(plain, family), atol=1e-6)
    tuned = attach_lora(fm, LoraConfig(rank=2), seed=0)
    adapter = get_adapter(tuned)
    set_adapter(tuned, adapter + np.random.default_rng(0).normal(0, 0.1, adapter.shape).astype(np.float32))
    wanted = logits(tuned, family)
    assert torch.equal(logits(unpack_model(pack_model(tuned)), family), wanted), "it travels"
    fold(tuned)
    assert not any(isinstance(module, StandardizedLinear) for module in tuned.modules())
    assert torch.allclose(logits(tuned, family), wanted, atol=1e-4)
    untuned = without_adapter(tuned)
    assert untuned.state_dict().keys() == plain.state_dict().keys()
    for name, value in untuned.state_dict().items():
        assert torch.allclose(value, plain.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_clients_that_train_together_get_the_bits_that_each_gets_alone(family):
    fm = tiny_fm(family, num_labels=2)
    standardize_head(fm, **measured(fm, family))
    package = tiny_package(family, model=attach_lora(fm, LoraConfig(rank=2), seed=0), clients_per_batch=4)
    place = LocalClient(package)
    plan = RoundPlan(round_index=1, lr=1e-2, adapter=get_adapter(unpack_model(package.proxy)), count_activations=False)
    alone = [place.fit(plan, client).adapter for client in range(4)]
    together = [update.adapter for update in place.fit_together(plan, range(4))]
    for one, other in zip(alone, together, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("family", ["bert", "roberta", "vit"])
def test_what_the_head_reads_has_mean_zero_and_deviation_one_over_the_public_examples(family):
    _, fm = standardized(family)
    (layer,) = [module for module in fm.modules() if isinstance(module, StandardizedLinear)]
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append((args[0] - module.mean) / module.scale))
    with torch.no_grad():
        fm.eval()(**torch.utils.data.default_collate(rows_of(family)))
    (inputs,) = seen
    assert torch.allclose(inputs.mean(dim=0), torch.zeros(inputs.shape[-1]), atol=1e-4)
    deviation = inputs.std(dim=0, correction=0)
    assert (deviation < 1 + 1e-4).all(), "a feature that hardly varies is not blown up"
    assert (deviation > 0.99).float().mean() > 0.5


@pytest.mark.parametrize("family", sorted(WITHOUT_BIAS & set(FAMILIES)))
def test_a_head_without_a_bias_is_refused_in_one_line(family):
    with pytest.raises(ConfigError, match="head_inputs: found standardized for a head whose first layer has no bias"):
        measured(tiny_fm(family), family)


def test_few_steps_suffice_where_features_have_a_large_part_in_common():
    generator = torch.Generator().manual_seed(0)
    inputs = 1 + 0.05 * torch.randn(200, 8, generator=generator)
    labels = (inputs[:, 0] > inputs[:, 1]).long()
    accuracies = []
    for is_standardized in (False, True):
        head = torch.nn.Linear(8, 2)
        torch.nn.init.zeros_(head.weight)
        if is_standardized:
            standardize(head, inputs.double().mean(dim=0), inputs.double().std(dim=0))
        descent = torch.optim.SGD(head.parameters(), lr=0.5)
        for _ in range(30):
            descent.zero_grad()
            torch.nn.functional.cross_entropy(head(inputs), labels).backward()
            descent.step()
        fold(head)
        accuracies.append((head(inputs).argmax(dim=1) == labels).float().mean().item())
    assert accuracies[0] < 0.9 < 0.95 < accuracies[1]


def test_what_is_folded_in_is_a_mean_and_a_scale():
    head = torch.nn.Linear(2, 1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 5.0]]))
        head.bias.copy_(torch.tensor([7.0]))
    standardize(head, torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([2.0, 4.0], dtype=torch.float64))
    assert (head.weight.tolist(), head.bias.tolist()) == ([[6.0, 20.0]], [20.0])
    with torch.no_grad():
        head.weight.add_(2)
    fold(head)
    assert type(head) is torch.nn.Linear
    assert (head.weight.tolist(), head.bias.tolist()) == ([[4.0, 5.5]], [5.0])


def test_a_head_in_bfloat16_loses_nothing_either():
    plain, fm = tiny_fm("bert").bfloat16(), tiny_fm("bert").bfloat16()
    standardize_head(fm, **measured(fm, "bert"))
    fold(fm)
    for name, value in plain.classifier.state_dict().items():
        assert torch.equal(fm.classifier.state_dict()[name].bfloat16(), value), name


def test_public_examples_that_are_all_alike_are_refused_in_one_line():
    alike = PublicData(dataset=rows_of("bert")[:1] * 8, collate=torch.utils.data.default_collate)
    with pytest.raises(ConfigError, match=r"^federated\.head_inputs: found standardized, but the 8 public examples"):
        measured(tiny_fm("bert"), "bert", alike)
