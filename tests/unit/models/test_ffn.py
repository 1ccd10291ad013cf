import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedpft.config import LoraConfig
from fedpft.models.families import FFN_LOCATIONS
from fedpft.models.ffn import find_backbone, find_ffns, num_transformer_parameters
from fedpft.models.lora import attach_lora
from fedpft.models.lora_targets import LORA_TARGETS
from tests.tiny import (
    FAMILIES,
    FUSED_FAMILIES,
    GATED_FAMILIES,
    OPT_350M,
    OUTPUT_NORM_FAMILIES,
    POST_NORM_FAMILIES,
    TINY_CONFIGS,
    tiny_batch,
    tiny_fm,
)


def test_every_family_has_a_row_in_both_tables_and_is_tested():
    assert set(FFN_LOCATIONS) == set(LORA_TARGETS) == set(TINY_CONFIGS)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_each_layer_has_one_ffn_with_all_its_parts(model_type):
    ffns = find_ffns(tiny_fm(model_type))
    assert [ffn.index for ffn in ffns] == [0, 1, 2]
    for ffn in ffns:
        assert ffn.num_neurons == 24
        assert ffn.up_weight.shape == (24, 16)
        assert ffn.down_weight.shape == (16, 24)
        assert (ffn.gate is not None) == (model_type in GATED_FAMILIES)
        assert ffn.gate is None or ffn.gate_weight.shape == (24, 16)
        assert (ffn.gate is ffn.up) == (model_type in FUSED_FAMILIES)
        assert (ffn.output_norm is not None) == (model_type in OUTPUT_NORM_FAMILIES)
        assert ffn.closing_norm is None or isinstance(ffn.closing_norm, nn.LayerNorm)
        assert (ffn.closing_norm is not None) == (model_type in POST_NORM_FAMILIES)
        assert ffn.dropout is None or isinstance(ffn.dropout, nn.Dropout)
        assert isinstance(ffn.up, Conv1D) == (model_type == "gpt2")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_neuron_axes_cover_all_of_the_ffn_but_its_output_bias_and_norm(model_type):
    ffn = find_ffns(tiny_fm(model_type))[0]
    axes = ffn.neuron_axes()
    halves = 2 if model_type in FUSED_FAMILIES else 1
    assert [parameter.shape[axis] for parameter, axis in axes] == [24 * halves] * (len(axes) - 1) + [24]
    rest = {id(p) for p in ffn.parameters()} - {id(p) for p, _ in axes}
    outside = [] if ffn.down.bias is None else [ffn.down.bias]
    outside += [p for norm in (ffn.output_norm, ffn.closing_norm) if norm is not None for p in norm.parameters()]
    assert rest == {id(p) for p in outside}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_neurons_can_be_permuted_without_changing_the_model(model_type):
    fm, batch = tiny_fm(model_type), tiny_batch(model_type)
    with torch.no_grad():
        before = fm(**batch).logits
        find_ffns(fm)[1].keep_neurons(torch.arange(24).flip(0))
        torch.testing.assert_close(fm(**batch).logits, before, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_backbone_is_found_inside_lora_and_containers_and_alone(model_type):
    fm = tiny_fm(model_type)
    backbone = fm.base_model
    count = num_transformer_parameters(fm)
    assert find_backbone(fm) is find_backbone(backbone) is find_backbone(nn.Sequential(fm)) is backbone
    wrapped = attach_lora(fm, LoraConfig(), seed=0)
    assert find_backbone(wrapped) is backbone
    assert find_ffns(wrapped)[2].up is find_ffns(backbone)[2].up
    assert num_transformer_parameters(wrapped) == count


def test_an_opt_has_a_closing_norm_only_where_its_config_says_post_ln():
    norms = {
        before: [ffn.closing_norm for ffn in find_ffns(tiny_fm("opt", do_layer_norm_before=before))]
        for before in (True, False)
    }
    assert norms[True] == [None] * 3
    layers = tiny_fm("opt", **OPT_350M).model.decoder.layers
    assert [type(norm) for norm in norms[False]] == [type(layer.final_layer_norm) for layer in layers]


def test_a_module_without_a_transformer_is_an_error():
    with pytest.raises(ValueError, match="no transformers model inside Linear"):
        find_backbone(nn.Linear(1, 1))
