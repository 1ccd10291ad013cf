import pytest
import torch

from fedpft.align.closed_form import refit_layers, refit_neurons
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.align.regression import RIDGES
from fedpft.config import ConfigError, LayerAlignConfig, LoraConfig, NeuronAlignConfig, ServerConfig
from fedpft.construct.compress import NeuronMap, compress
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import find_backbone, find_ffns
from fedpft.models.lora import attach_lora, get_adapter, set_adapter
from tests.tiny import (
    DINOV2_BASE,
    EVERY_ROW,
    ONE_FAMILY_PER_ROW,
    OPT_350M,
    TEXT_FAMILIES,
    TEXT_ROWS,
    tiny_batch,
    tiny_fm,
)

SERVER = ServerConfig(accelerator="cpu")
SETTINGS = {"kind": "closed_form", "num_examples": 64, "batch_size": 8}


def public_data(model_type, num_examples=64, padding=0):
    batch = tiny_batch(model_type, batch_size=num_examples, num_tokens=9)
    if padding and model_type in TEXT_FAMILIES:
        batch = {name: torch.nn.functional.pad(value, (0, padding)) for name, value in batch.items()}
    rows = [{name: value[row] for name, value in batch.items()} for row in range(num_examples)]
    return PublicData(dataset=rows, collate=torch.utils.data.default_collate)


def models(model_type):
    fm = tiny_fm(model_type)
    return fm, compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))[0]


def refit(model_type, fm, sub_fm, *, layers=(1, 2), public=None, **settings):
    public = public or public_data(model_type)
    config = LayerAlignConfig(**(SETTINGS | settings))
    context = AlignmentContext(public=public, server=SERVER, seed=0)
    return refit_layers(fm, sub_fm, config, context, layers=layers)


def refit_chosen(model_type, fm, sub_fm, masks):
    config = NeuronAlignConfig(**SETTINGS | {"num_examples": 256})
    context = AlignmentContext(public=public_data(model_type, num_examples=256), server=SERVER, seed=0)
    return refit_neurons(fm, sub_fm, config, context, neuron_masks=masks)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def hidden_error(fm, sub_fm, batch):
    outputs = []
    for model in (fm, sub_fm):
        with torch.no_grad(), layer_outputs([find_ffns(model)[-1].layer]) as found:
            find_backbone(model)(**batch)
        real = batch["attention_mask"].bool() if "attention_mask" in batch else ...
        outputs.append(found[0][real])
    return float((outputs[0] - outputs[1]).square().mean() / outputs[0].square().mean())


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        *((family, {}) for family in EVERY_ROW),
        ("opt", OPT_350M),
        ("dinov2", DINOV2_BASE),
    ],
)
def test_dropped_copies_of_kept_neurons_are_made_up_for(model_type, overrides):
    fm = tiny_fm(model_type, **overrides)
    with torch.no_grad():
        for ffn in find_ffns(fm):
            for parameter, axis in ffn.neuron_axes():
                if parameter is not ffn.down.weight:  # the second half fires like the first half
                    for part in parameter.movedim(axis, 0).split(24):
                        part[12:] = part[:12]
    first_half = {layer: torch.arange(12) for layer in range(3)}
    sub_fm, _ = compress(fm, retained_ratio=0.5, scorer=lambda *_: [torch.arange(24, 0, -1.0)] * 3)
    assert NeuronMap(first_half).compressed_layers == (0, 1, 2)
    unseen = tiny_batch(model_type, seed=9)
    before = hidden_error(fm, sub_fm, unseen)
    report = refit(model_type, fm, sub_fm, layers=(0, 1, 2))
    assert hidden_error(fm, sub_fm, unseen) < 1e-3 * before
    assert report.last_loss < 1e-3 * report.first_loss


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_only_down_projections_and_closing_norms_of_compressed_layers_change(model_type):
    fm, sub_fm = models(model_type)
    fm_before, before = weights(fm), weights(sub_fm)
    modes = [module.training for module in sub_fm.modules()]
    report = refit(model_type, fm, sub_fm)
    assert report.last_loss < report.first_loss
    assert not changed(fm, fm_before)
    parts = [module for ffn in find_ffns(sub_fm)[1:] for module in (ffn.down, ffn.closing_norm) if module is not None]
    wanted = {id(parameter) for module in parts for parameter in module.parameters()}
    assert changed(sub_fm, before) == {name for name, p in sub_fm.named_parameters() if id(p) in wanted}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in sub_fm.parameters())
    assert modes == [module.training for module in sub_fm.modules()]


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_only_the_biases_move_when_asked(model_type):
    fm, sub_fm = models(model_type)
    before = [ffn.down_weight.clone() for ffn in find_ffns(sub_fm)]
    report = refit(model_type, fm, sub_fm, refit="bias")
    assert all(torch.equal(ffn.down_weight, old) for ffn, old in zip(find_ffns(sub_fm), before, strict=True))
    if find_ffns(sub_fm)[1].down.bias is not None:
        assert report.last_loss < report.first_loss


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "vit"])
def test_only_the_chosen_neurons_columns_and_the_bias_move(model_type):
    fm, sub_fm = models(model_type)
    fm, sub_fm = attach_lora(fm, LoraConfig(rank=2), seed=0), attach_lora(sub_fm, LoraConfig(rank=2), seed=1)
    adapter = get_adapter(fm) + 0.1
    set_adapter(fm, adapter)
    set_adapter(sub_fm, adapter)
    before, columns = weights(sub_fm), [ffn.down_weight.clone() for ffn in find_ffns(sub_fm)]
    masks = {1: torch.arange(12) % 2 == 0, 2: torch.arange(12) < 5}
    report = refit_chosen(model_type, fm, sub_fm, masks)
    assert report.last_loss < report.first_loss
    ffns = find_ffns(sub_fm)
    for layer, mask in masks.items():
        assert torch.equal(ffns[layer].down_weight[:, ~mask], columns[layer][:, ~mask])
        assert (ffns[layer].down_weight[:, mask] != columns[layer][:, mask]).any(dim=0).all()
    wanted = {id(parameter) for layer in masks for parameter in ffns[layer].down.parameters()}
    assert changed(sub_fm, before) == {name for name, p in sub_fm.named_parameters() if id(p) in wanted}


def test_the_last_layer_solves_its_ridge_problem_on_the_sub_fms_own_inputs():
    """Reference: the gradient of the ridge objective, from plain hooks in whole forward passes, is zero."""
    fm, sub_fm = models("bert")
    prior = find_ffns(sub_fm)[2].down_weight.detach().clone().double()
    public = public_data("bert")
    refit("bert", fm, sub_fm, public=public)
    seen = {}
    fm_ffn, ffn = find_ffns(fm)[2], find_ffns(sub_fm)[2]
    fm_ffn.closing_norm.register_forward_pre_hook(lambda module, args: seen.update(wanted=args[0]))
    ffn.closing_norm.register_forward_pre_hook(lambda module, args: seen.update(total=args[0]))
    ffn.down.register_forward_hook(lambda module, args, output: seen.update(h=args[0], y=output))
    gradient, energy = torch.zeros(16, 13, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    for batch in list(public.batches(64, 8, 0))[1:]:  # the first one is held out
        with torch.no_grad():
            find_backbone(fm)(**batch)
            find_backbone(sub_fm)(**batch)
        real = batch["attention_mask"].bool()
        h, gap = (value[real].double() for value in (seen["h"], seen["total"] - seen["wanted"]))
        weight = 1 / seen["wanted"][real].double().var(dim=1, correction=0)
        gradient += (gap * weight[:, None]).T @ torch.cat([h, torch.ones(len(h), 1, dtype=torch.float64)], dim=1)
        energy += (weight[:, None] * h.square()).sum(dim=0)
    pull = energy.mean() * (ffn.down_weight.detach().double() - prior)
    size = gradient.abs().max()
    mismatch = [float((gradient[:, :12] + ridge * pull).abs().max() / size) for ridge in RIDGES]
    assert min(mismatch) < 1e-2
    assert float(gradient[:, 12].abs().max() / size) < 1e-2


@pytest.mark.parametrize("model_type", TEXT_ROWS)
def test_padding_does_not_count(model_type):
    solutions = []
    for padding in (0, 5):
        fm, sub_fm = models(model_type)
        refit(model_type, fm, sub_fm, public=public_data(model_type, padding=padding))
        solutions.append(find_ffns(sub_fm)[1].down_weight.detach())
    torch.testing.assert_close(*solutions, rtol=1e-3, atol=1e-4)


def test_the_same_call_twice_gives_the_same_bits():
    states = []
    for _ in range(2):
        fm, sub_fm = models("bert")
        refit("bert", fm, sub_fm)
        states.append(sub_fm.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_progress_counts_the_layers_and_ends_with_the_losses_before_and_after():
    steps = []
    fm, sub_fm = models("bert")
    config = LayerAlignConfig(**SETTINGS)
    public = public_data("bert")
    context = AlignmentContext(public=public, server=SERVER, seed=0, on_step=lambda *step: steps.append(step))
    report = refit_layers(fm, sub_fm, config, context, layers=(1, 2))
    assert steps == [
        (1, 3, {}),
        (2, 3, {}),
        (3, 3, {}),
        (3, 3, {"loss": report.first_loss}),
        (3, 3, {"loss": report.last_loss}),
    ]


def test_no_more_examples_than_asked_are_read():
    read = []

    class Counting(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    public = public_data("bert")
    counting = PublicData(dataset=Counting(public.dataset), collate=public.collate)
    fm, sub_fm = models("bert")
    refit("bert", fm, sub_fm, public=counting, num_examples=20)
    assert len(read) == len(set(read)) == 20


@pytest.mark.parametrize("config", [LayerAlignConfig, NeuronAlignConfig])
def test_too_few_examples_to_choose_a_ridge_are_refused(config):
    with pytest.raises(ConfigError, match=r"num_examples: found 8, allowed: more than .*batch_size = 8"):
        config(kind="closed_form", num_examples=8, batch_size=8)
    config(kind="distill", num_examples=8, batch_size=8)
