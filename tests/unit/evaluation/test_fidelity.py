import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from fedpft.config import LoraConfig, ServerConfig
from fedpft.construct.compress import compress
from fedpft.evaluation.fidelity import measure_fidelity
from fedpft.methods.plugin import adapter_order, plug_in
from fedpft.models.ffn import find_backbone, find_ffns
from fedpft.models.lora import attach_lora, get_adapter, set_adapter
from tests.tiny import (
    EVERY_ROW,
    ONE_FAMILY_PER_ROW,
    POST_NORM_FAMILIES,
    WITHOUT_CLASSIFIER,
    tiny_batch,
    tiny_fm,
)

SERVER = ServerConfig(accelerator="cpu")
RATIO = 0.5


def models(family="bert", *, retained_ratio=RATIO, fresh=False, **fm):
    """Return an FM and its sub-FM with the same adapter in both; B is not zero unless the adapter is fresh."""
    plain = tiny_fm(family, **fm)
    sub_fm, _ = compress(plain, retained_ratio=retained_ratio)
    pair = [attach_lora(model, LoraConfig(rank=2, lora_alpha=4, dropout=0.5), seed=0) for model in (plain, sub_fm)]
    if not fresh:
        adapter = get_adapter(pair[0])
        adapter += np.random.default_rng(0).normal(0, 0.3, adapter.shape).astype(np.float32)
        for model in pair:
            set_adapter(model, adapter)
    return pair


def labelled(family="bert", **kwargs):
    batch = tiny_batch(family, **({"batch_size": 6} | kwargs))
    if family in WITHOUT_CLASSIFIER:
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
    labels = torch.arange(len(next(iter(batch.values())))) % 3
    return batch | {"labels": labels}


def measure(fm, proxy, batch, **kwargs):
    return measure_fidelity(fm, proxy, batch, server=SERVER, **kwargs)


def numbers(fidelity):
    """Return all numbers as one list, layers first."""
    record = fidelity.record()
    return [value for name in record if name != "total" for value in record[name]] + list(record["total"].values())


def by_hand(model, batch):
    """Return each layer's hidden states at real tokens and its LoRA gradient, over the whole batch at once."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    outputs = find_backbone(model)(**inputs, output_hidden_states=True).hidden_states[1:]
    mask = inputs.get("attention_mask", torch.ones(outputs[0].shape[:2])).bool()
    loss = model(**batch).loss
    gradients = []
    for ffn in find_ffns(model):
        lora = [p for name, p in sorted(ffn.layer.named_parameters()) if "lora_" in name]
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, lora, retain_graph=True)]))
    return [h.detach()[mask] for h in outputs], gradients


@pytest.mark.parametrize("family", EVERY_ROW)
def test_every_number_is_that_of_a_plain_computation_on_the_whole_batch(family):
    fm, sub_fm = models(family)
    batch = labelled(family)
    (fm_hidden, fm_gradients), (sub_hidden, sub_gradients) = by_hand(fm, batch), by_hand(sub_fm, batch)
    record = measure(fm, sub_fm, batch, batch_size=4).record()

    depth = 3
    last = depth if family in POST_NORM_FAMILIES else depth - 1  # pre-LN: normalised once more
    errors = [float((t - s).norm() / t.norm()) for t, s in zip(fm_hidden, sub_hidden, strict=True)]
    assert record["hidden_error"][:last] == pytest.approx(errors[:last], rel=1e-4)
    cosines = [float(torch.cosine_similarity(t, s, dim=0)) for t, s in zip(fm_gradients, sub_gradients, strict=True)]
    assert record["gradient_cosine"] == pytest.approx(cosines, rel=1e-4)
    ratios = [float(s.norm() / t.norm()) for t, s in zip(fm_gradients, sub_gradients, strict=True)]
    assert record["gradient_norm_ratio"] == pytest.approx(ratios, rel=1e-4)
    fm_all, sub_all = torch.cat(fm_gradients), torch.cat(sub_gradients)
    assert record["total"] == pytest.approx(
        {
            "hidden_error": record["hidden_error"][-1],
            "gradient_cosine": float(torch.cosine_similarity(fm_all, sub_all, dim=0)),
            "gradient_norm_ratio": float(sub_all.norm() / fm_all.norm()),
        },
        rel=1e-4,
    )
    assert all(error > 1e-3 for error in record["hidden_error"]), "the sub-FM does differ"


@pytest.mark.parametrize("family", ONE_FAMILY_PER_ROW)
def test_a_model_of_one_output_is_compared_by_the_gradients_of_its_squared_error(family):
    fm, sub_fm = models(family, num_labels=1, problem_type="regression")
    batch = tiny_batch(family, batch_size=6) | {"labels": torch.linspace(0, 5, 6)}
    gradients = []
    for model in (fm, sub_fm):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        loss = (model(**inputs).logits[:, 0] - batch["labels"]).square().mean()
        lora = [p for ffn in find_ffns(model) for n, p in sorted(ffn.layer.named_parameters()) if "lora_" in n]
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, lora)]))
    total = measure(fm, sub_fm, batch, batch_size=4).record()["total"]
    expected = torch.cosine_similarity(*gradients, dim=0)
    assert abs(float(expected)) < 0.9999
    assert total["gradient_cosine"] == pytest.approx(float(expected), rel=1e-4)
    assert total["gradient_norm_ratio"] == pytest.approx(float(gradients[1].norm() / gradients[0].norm()), rel=1e-4)


@pytest.mark.parametrize("family", EVERY_ROW)
def test_a_sub_fm_that_kept_every_neuron_is_the_fm(family):
    record = measure(*models(family, retained_ratio=1.0), labelled(family)).record()
    assert record["hidden_error"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert record["gradient_cosine"] == pytest.approx([1, 1, 1], abs=1e-6)
    assert record["gradient_norm_ratio"] == pytest.approx([1, 1, 1], abs=1e-5)


def test_scaling_the_last_layers_output_gives_that_error_there_and_none_before():
    fm, proxy = models("bert", retained_ratio=1.0)
    norm = find_ffns(proxy)[2].closing_norm
    with torch.no_grad():
        norm.weight.mul_(1.25)
        norm.bias.mul_(1.25)
    record = measure(fm, proxy, labelled()).record()
    assert record["hidden_error"] == pytest.approx([0, 0, 0.25], abs=1e-6)
    assert record["total"]["hidden_error"] == record["hidden_error"][2]


def test_scaling_the_gradients_changes_their_ratio_and_not_their_cosine():
    fm, proxy = models("llama", retained_ratio=1.0)
    with torch.no_grad():  # logits of both 0, so that the gradient is linear in the head
        head = [model.base_model.model.score.modules_to_save["default"].weight for model in (fm, proxy)]
        head[0].mul_(1e-4)
        head[1].mul_(3e-4)
    record = measure(fm, proxy, labelled("llama")).record()
    assert record["gradient_cosine"] == pytest.approx([1, 1, 1], abs=1e-4)
    assert record["gradient_norm_ratio"] == pytest.approx([3, 3, 3], rel=1e-3)
    assert record["hidden_error"] == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_padding_does_not_count(family):
    fm, sub_fm = models(family)
    batch = labelled(family)
    padded = {name: value if name == "labels" else pad(value, (0, 5)) for name, value in batch.items()}
    assert numbers(measure(fm, sub_fm, padded)) == pytest.approx(numbers(measure(fm, sub_fm, batch)), rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "vit"])
@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_the_size_of_a_pass_does_not_change_the_numbers(family, batch_size):
    fm, sub_fm = models(family)
    whole = numbers(measure(fm, sub_fm, labelled(family)))
    assert numbers(measure(fm, sub_fm, labelled(family), batch_size=batch_size)) == pytest.approx(whole, rel=1e-4)


def test_a_fresh_adapter_is_measured_by_its_b_matrices():
    """B = 0 makes A's gradients exactly 0, not those of B."""
    fm, sub_fm = models(fresh=True)
    assert all(0 < abs(value) < 2 for value in numbers(measure(fm, sub_fm, labelled())))


def test_gradients_of_zero_length_have_no_direction_and_the_record_stays_json():
    fm, sub_fm = models()
    with torch.no_grad():
        for model in (fm, sub_fm):
            model.base_model.model.classifier.modules_to_save["default"].weight.zero_()
    record = measure(fm, sub_fm, labelled()).record()
    assert record["gradient_cosine"] == record["gradient_norm_ratio"] == [None] * 3
    assert record["total"]["gradient_cosine"] is None
    assert all(error > 0 for error in record["hidden_error"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_proxy_whose_gradient_is_zero_has_ratio_zero():
    fm, proxy = models()
    with torch.no_grad():
        proxy.base_model.model.classifier.modules_to_save["default"].weight.zero_()
    record = measure(fm, proxy, labelled()).record()
    assert record["gradient_norm_ratio"] == [0, 0, 0]
    assert record["gradient_cosine"] == [None] * 3


def test_values_that_are_not_finite_become_none():
    fm, proxy = models()
    with torch.no_grad():
        find_ffns(proxy)[1].down_weight.fill_(math.inf)
    record = measure(fm, proxy, labelled()).record()
    assert record["hidden_error"][0] > 0
    assert record["hidden_error"][1:] == [None, None]
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_both_models_and_the_random_state_stay_as_they_were(family):
    pair = models(family)
    for model in pair:
        model.train()
        find_ffns(model)[0].layer.eval()
        first = next(iter(model.parameters()))
        first.requires_grad_(True).grad = torch.ones_like(first)
        find_ffns(model)[1].layer.requires_grad_(False)

    def state(model):
        gradients = [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]
        weights = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
        flags = [parameter.requires_grad for parameter in model.parameters()]
        modules = [(module.training, len(module._forward_hooks)) for module in model.modules()]
        return gradients, weights, flags, modules, model.config.to_dict(), torch.get_rng_state().numpy().tobytes()

    before = [state(model) for model in pair]
    first_time, second_time = (numbers(measure(*pair, labelled(family), batch_size=4)) for _ in range(2))
    assert first_time == second_time, "no dropout"
    assert [state(model) for model in pair] == before


def test_steps_are_reported_in_examples():
    steps = []
    measure(*models(), labelled(), batch_size=4, on_step=lambda done, total, metrics: steps.append((done, total)))
    assert steps == [(4, 6), (6, 6)]


def test_chosen_pairs_give_their_layers_numbers():
    fm, sub_fm = models()
    whole = measure(fm, sub_fm, labelled())
    some = measure(fm, sub_fm, labelled(), layers=[(0, 0), (2, 2)])
    assert numbers(some)[:6] == pytest.approx([v for i, v in enumerate(numbers(whole)[:9]) if i % 3 != 1], rel=1e-5)


def test_a_shallower_proxy_is_compared_by_pairs_and_refused_without():
    fm = models("bert")[0]
    proxy = models("bert", num_hidden_layers=2)[0]
    with torch.no_grad():  # layers 0 and 1 of the proxy carry the adapters of layers 0 and 2 of the FM
        for mine, theirs in ((0, 0), (1, 2)):
            source = dict(find_ffns(fm)[theirs].layer.named_parameters())
            for name, parameter in find_ffns(proxy)[mine].layer.named_parameters():
                parameter.copy_(source[name])
    with pytest.raises(
        ValueError, match=r"layers: found none, but the FM has 3 layers and the proxy 2; allowed: pairs"
    ):
        measure(fm, proxy, labelled())
    assert len(measure(fm, proxy, labelled(), layers=[(0, 0), (2, 1)]).layers) == 2


@pytest.mark.parametrize("pairs", [[], [(3, 0)], [(0, 3)], [(-1, 0)]])
def test_pairs_of_layers_that_do_not_exist_are_refused(pairs):
    with pytest.raises(ValueError, match="pairs of existing layers"):
        measure(*models(), labelled(), layers=pairs)


def test_different_adapters_are_refused_and_the_models_still_restored():
    fm, sub_fm = models()
    set_adapter(sub_fm, get_adapter(sub_fm) + np.float32(0.1))
    sub_fm.train()
    with pytest.raises(ValueError, match=r"pair 0 .*the same adapter"):
        measure(fm, sub_fm, labelled())
    assert sub_fm.training


@pytest.mark.parametrize("size", [None, 0])
def test_a_batch_without_labelled_examples_is_refused(size):
    batch = tiny_batch("bert") if size is None else {name: value[:0] for name, value in labelled().items()}
    with pytest.raises(ValueError, match="labels"):
        measure(*models(), batch)


@pytest.mark.parametrize("family", ONE_FAMILY_PER_ROW)
def test_with_lora_on_ffns_an_fm_whose_other_neurons_are_silenced_is_no_distance_away(family):
    plain, lora = tiny_fm(family), LoraConfig(rank=2, dropout=0.5, target_modules=("all-linear",))
    sub_fm, neuron_map = compress(plain, retained_ratio=RATIO)
    fm, proxy = (attach_lora(model, lora, seed=0).double() for model in (plain, sub_fm))
    adapter = np.random.default_rng(0).normal(0, 0.3, get_adapter(proxy).shape).astype(np.float32)
    set_adapter(proxy, adapter)
    plug_in(fm, adapter, adapter_order(fm, proxy, neurons=neuron_map.retained))
    compared = {"neurons": neuron_map.retained}
    before = measure(fm, proxy, labelled(family), **compared).total
    for layer, neurons in neuron_map.retained.items():
        down = find_ffns(fm)[layer].down_weight
        others = torch.ones(down.shape[1], dtype=torch.bool)
        others[neurons] = False
        down.data[:, others] = 0
    total = measure(fm, proxy, labelled(family), **compared).total
    assert total.hidden_error < min(1e-6, before.hidden_error / 20)
    assert 1 - total.gradient_cosine < 1e-9
    assert total.gradient_norm_ratio == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="the LoRA tensors of pair 0 differ from the FM's"):
        measure(fm, proxy, labelled(family))
