import copy

import pytest
import torch

from fedpft.config import ConfigError
from fedpft.construct.layer_drop import LayerMap, choose_layers, drop_layers, emulator_tensors, restore_emulator
from fedpft.models.ffn import find_ffns
from tests.tiny import FAMILIES, ONE_FAMILY_PER_ROW, auto_model, tiny_batch, tiny_fm

FIVE_OF_SIX = LayerMap(kept=(0, 1, 3, 4, 5), adapter_layers=1)
DEPTH = {"distilbert": "n_layers", "gpt2": "n_layer"}


def deep_fm(model_type, num_layers=6, **overrides):
    return tiny_fm(model_type, **{DEPTH.get(model_type, "num_hidden_layers"): num_layers}, **overrides)


@torch.no_grad()
def logits(model, model_type):
    return model(**tiny_batch(model_type)).logits


@pytest.mark.parametrize(
    ("num_layers", "adapter_layers", "kept_layers", "kept"),
    [
        (12, 2, 7, (0, 1, 2, 6, 9, 10, 11)),  # 8 in the middle, 3 kept: 0, 3.5 -> 4, 7
        (12, 2, None, (0, 1, 2, 6, 9, 10, 11)),  # 7 of 12, the paper's budget
        (12, 2, 6, (0, 1, 2, 9, 10, 11)),  # the ends of the middle
        (12, 2, 5, (0, 1, 6, 10, 11)),  # one: 7 / 2 = 3.5 -> 4
        (12, 2, 4, (0, 1, 10, 11)),  # no emulator
        (12, 2, 12, tuple(range(12))),
        (24, 2, 10, (0, 1, 2, 6, 10, 13, 17, 21, 22, 23)),  # steps of 19 / 5: 0, 3.8, 7.6, 11.4, 15.2, 19
        (24, 3, None, (0, 1, 2, 3, 5, 8, 10, 13, 15, 18, 20, 21, 22, 23)),  # 14 of 24; steps of 17 / 7
        (6, 1, 5, (0, 1, 3, 4, 5)),  # 4 in the middle, 3 kept: 0, 1.5 -> 2, 3
    ],
)
def test_layers_are_those_computed_by_hand(num_layers, adapter_layers, kept_layers, kept):
    found = choose_layers(num_layers, adapter_layers=adapter_layers, kept_layers=kept_layers)
    assert found.kept == kept
    tuned = (*range(adapter_layers), *range(num_layers - adapter_layers, num_layers))
    assert found.tuned_in_fm == tuned
    assert tuple(kept[layer] for layer in found.tuned) == tuned
    assert [kept[layer] for layer in found.emulator] == [layer for layer in kept if layer not in tuned]
    assert found.end_of_middle == num_layers - adapter_layers - 1
    assert found.pairs == tuple(zip(kept, range(len(kept)), strict=True))


def test_every_possible_number_of_layers_is_kept_each_once_with_both_ends_of_the_middle():
    for num_layers in range(2, 41):
        for adapter_layers in range(1, num_layers // 2 + 1):
            for kept_layers in range(2 * adapter_layers, num_layers + 1):
                found = choose_layers(num_layers, adapter_layers=adapter_layers, kept_layers=kept_layers)
                assert len(found.kept) == kept_layers
                assert list(found.kept) == sorted(set(found.kept))
                assert (found.kept[0], found.kept[-1]) == (0, num_layers - 1)
                if len(found.emulator) >= 2:
                    ends = found.kept[found.emulator[0]], found.kept[found.emulator[-1]]
                    assert ends == (adapter_layers, num_layers - adapter_layers - 1)


@pytest.mark.parametrize(("num_layers", "kept"), [(2, 2), (3, 2), (4, 2), (6, 4), (24, 14)])
def test_by_default_7_of_12_layers_are_kept_or_what_the_adapter_needs(num_layers, kept):
    assert len(choose_layers(num_layers, adapter_layers=1).kept) == kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter_layers": 0}, "adapter_layers: found 0, allowed: 1 to 2, half of the FM's layers"),
        ({"adapter_layers": 3}, "adapter_layers: found 3, allowed: 1 to 2, half of the FM's layers"),
        ({"adapter_layers": 2, "kept_layers": 3}, "kept_layers: found 3, allowed: 4 to 5, from 2 * adapter_layers to"),
        ({"adapter_layers": 1, "kept_layers": 6}, "kept_layers: found 6, allowed: 2 to 5, from 2 * adapter_layers to"),
    ],
)
def test_layers_that_an_fm_of_five_does_not_have_are_refused(settings, message):
    with pytest.raises(ValueError, match="found") as error:
        choose_layers(5, **settings)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_proxy_computes_what_the_fm_does_when_it_passes_over_the_dropped_layers(model_type):
    fm = deep_fm(model_type)
    proxy = drop_layers(fm, FIVE_OF_SIX)

    def pass_over(module, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    whole = logits(fm, model_type)
    find_ffns(fm)[2].layer.register_forward_hook(pass_over, with_kwargs=True)
    assert torch.equal(logits(proxy, model_type), logits(fm, model_type))
    assert not torch.equal(logits(proxy, model_type), whole)
    assert len(find_ffns(proxy)) == 5


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_the_proxy_of_all_layers_is_the_fm(model_type):
    fm = deep_fm(model_type)
    proxy = drop_layers(fm, LayerMap(kept=tuple(range(6)), adapter_layers=2))
    assert torch.equal(logits(proxy, model_type), logits(fm, model_type))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_saved_proxy_opens_with_plain_transformers(model_type, tmp_path):
    proxy = drop_layers(deep_fm(model_type), FIVE_OF_SIX)
    proxy.save_pretrained(tmp_path)
    opened = auto_model(model_type).from_pretrained(tmp_path).eval()
    assert opened.config.num_hidden_layers == 5
    assert torch.equal(logits(opened, model_type), logits(proxy, model_type))


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_the_fm_is_not_changed_and_shares_nothing_with_its_proxy(model_type):
    fm = deep_fm(model_type)
    before, config = logits(fm, model_type), copy.deepcopy(fm.config.to_dict())
    proxy = drop_layers(fm, FIVE_OF_SIX)
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.zero_()
    assert torch.equal(logits(fm, model_type), before)
    assert fm.config.to_dict() == config
    configs = {id(module.config) for module in proxy.modules() if hasattr(module, "config")}
    assert configs == {id(proxy.config)}, "the layers read the config that the model reads"
    assert {module.training for module in proxy.modules()} == {False}


def test_a_kept_layer_keeps_its_kind_of_attention():
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    fm = deep_fm("qwen2", 4, layer_types=kinds, use_sliding_window=True, sliding_window=2, max_window_layers=0)
    proxy = drop_layers(fm, LayerMap(kept=(0, 1, 3), adapter_layers=1))
    assert proxy.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert logits(proxy, "qwen2").isfinite().all()


def test_an_fm_whose_attention_depends_on_the_layers_number_is_refused():
    fm = deep_fm("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ConfigError, match=r"^fm\.config\.scale_attn_by_inverse_layer_idx: found True, allowed: False"):
        drop_layers(fm, FIVE_OF_SIX)


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_a_changed_emulator_comes_back_bit_for_bit(model_type):
    fm = deep_fm(model_type)
    proxy = drop_layers(fm, FIVE_OF_SIX)
    with torch.no_grad():
        for layer in FIVE_OF_SIX.emulator:
            for parameter in find_ffns(proxy)[layer].layer.parameters():
                parameter.mul_(1.5)
    tensors = emulator_tensors(proxy, FIVE_OF_SIX)
    expected = logits(proxy, model_type)
    with torch.no_grad():
        find_ffns(proxy)[1].down_weight.zero_()  # the tensors are copies
    restored = restore_emulator(fm, FIVE_OF_SIX, tensors)
    assert torch.equal(logits(restored, model_type), expected)


@pytest.mark.parametrize("spoil", ["missing", "unknown", "shape"])
def test_tensors_of_another_emulator_are_refused(spoil):
    fm = deep_fm("bert")
    tensors = emulator_tensors(drop_layers(fm, FIVE_OF_SIX), FIVE_OF_SIX)
    name = "2.output.dense.bias"
    if spoil == "shape":
        tensors[name] = tensors[name][1:]
    elif spoil == "missing":
        del tensors[name]
    else:
        tensors["4.output.dense.bias"] = tensors[name]
    with pytest.raises(ValueError, match=r"emulator tensors: .*output\.dense\.bias"):
        restore_emulator(fm, FIVE_OF_SIX, tensors)
