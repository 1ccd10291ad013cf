import pytest
import torch
from torch import nn
from transformers import AutoConfig, BertModel

from fedpft.construct.compress import compress, resolve_layers, restore_sub_fm, sub_fm_tensors
from fedpft.models.ffn import find_ffns, num_transformer_parameters
from fedpft.models.loading import load_sub_fm
from tests.tiny import ACTIVATIONS, EVERY_ROW, FAMILIES, auto_model, modality_of, tiny_batch, tiny_fm


def outputs(model, model_type):
    with torch.no_grad():
        return model(**tiny_batch(model_type)).logits


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_full_retention_gives_the_fm(model_type):
    fm = tiny_fm(model_type)
    sub_fm, neuron_map = compress(fm, retained_ratio=1.0)
    assert torch.equal(outputs(sub_fm, model_type), outputs(fm, model_type))
    assert all(torch.equal(kept, torch.arange(24)) for kept in neuron_map.retained.values())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_sub_fm_equals_the_fm_with_the_other_neurons_switched_off(model_type):
    fm = tiny_fm(model_type)
    sub_fm, neuron_map = compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))
    assert neuron_map.compressed_layers == (1, 2)
    assert [ffn.num_neurons for ffn in find_ffns(sub_fm)] == [24, 12, 12]
    with torch.no_grad():
        for ffn in find_ffns(fm)[1:]:
            dropped = torch.ones(24, dtype=torch.bool).index_fill(0, neuron_map.retained[ffn.index], False)
            ffn.down_weight[:, dropped] = 0  # a view: down's weight itself changes
    torch.testing.assert_close(outputs(sub_fm, model_type), outputs(fm, model_type), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_a_compressed_ffn_computes_the_formula_with_the_kept_rows_and_columns(model_type):
    fm = tiny_fm(model_type)
    sub_fm, neuron_map = compress(fm, retained_ratio=0.5)
    whole, ffn, kept = find_ffns(fm)[1], find_ffns(sub_fm)[1], neuron_map.retained[1]
    seen = {}
    ffn.up.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    ffn.down.register_forward_hook(lambda module, args, output: seen.update(y=output))
    outputs(sub_fm, model_type)

    def bias(module, neurons=slice(None)):
        return 0 if module.bias is None else module.bias[neurons]

    with torch.no_grad():
        up = seen["x"] @ whole.up_weight[kept].T + bias(whole.up, kept - 24)  # of a fused projection: the second half
        act = ACTIVATIONS[model_type]
        gate = up if whole.gate is None else seen["x"] @ whole.gate_weight[kept].T + bias(whole.gate, kept)
        h = act(up) if whole.gate is None else act(gate) * up
        y = h @ whole.down_weight[:, kept].T + bias(whole.down)
    torch.testing.assert_close(seen["y"], y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_kept_neurons_are_copied_in_their_order_and_the_rest_of_the_model_as_it_is(model_type):
    fm = tiny_fm(model_type)
    sub_fm, neuron_map = compress(fm, retained_ratio=0.25)
    for fm_ffn, sub_ffn in zip(find_ffns(fm), find_ffns(sub_fm), strict=True):
        kept = neuron_map.retained[fm_ffn.index]
        assert torch.equal(kept, kept.sort().values)
        for (whole, axis), (cut, _) in zip(fm_ffn.neuron_axes(), sub_ffn.neuron_axes(), strict=True):
            halves = [part.index_select(axis, kept) for part in whole.split(24, axis)]
            assert torch.equal(cut, torch.cat(halves, axis))
    cut_parameters = {id(p) for ffn in find_ffns(sub_fm) for p, _ in ffn.neuron_axes()}
    of_fm = dict(fm.named_parameters())
    for name, parameter in sub_fm.named_parameters():
        assert id(parameter) in cut_parameters or torch.equal(parameter, of_fm[name]), name


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_the_fm_is_not_changed(model_type):
    fm = tiny_fm(model_type)
    config = fm.config.to_dict()
    before = {name: tensor.clone() for name, tensor in fm.state_dict().items()}
    sub_fm, _ = compress(fm, retained_ratio=0.25)
    with torch.no_grad():
        for parameter in sub_fm.parameters():
            parameter.add_(1)
    assert fm.config.to_dict() == config
    assert fm.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in fm.state_dict().items())


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - {"dinov2"}))
def test_uniform_sub_fm_opens_without_code_of_ours(model_type, tmp_path):
    sub_fm, _ = compress(tiny_fm(model_type), retained_ratio=0.5)
    sub_fm.save_pretrained(tmp_path)
    opened = auto_model(model_type).from_pretrained(tmp_path).eval()
    assert torch.equal(outputs(opened, model_type), outputs(sub_fm, model_type))


@pytest.mark.parametrize("uncompressed_layers", [(), (0,)])
@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_every_sub_fm_opens_with_load_sub_fm(model_type, uncompressed_layers, tmp_path):
    sub_fm, _ = compress(tiny_fm(model_type), retained_ratio=0.5, uncompressed_layers=uncompressed_layers)
    sub_fm.save_pretrained(tmp_path)
    opened = load_sub_fm(tmp_path, modality=modality_of(model_type))
    assert type(opened) is type(sub_fm)
    assert not opened.training
    assert torch.equal(outputs(opened, model_type), outputs(sub_fm, model_type))
    opened.save_pretrained(tmp_path / "again")
    again = load_sub_fm(tmp_path / "again", modality=modality_of(model_type))
    assert torch.equal(outputs(again, model_type), outputs(sub_fm, model_type))


def test_conv1d_shapes_follow_the_cut():
    sub_fm, _ = compress(tiny_fm("gpt2"), retained_ratio=0.5)
    mlp = sub_fm.transformer.h[0].mlp
    assert (mlp.c_fc.nx, mlp.c_fc.nf, *mlp.c_fc.weight.shape) == (16, 12, 16, 12)
    assert (mlp.c_proj.nx, mlp.c_proj.nf, *mlp.c_proj.weight.shape) == (12, 16, 12, 16)


def test_neurons_that_are_dropped_are_never_copied(monkeypatch):
    fm, copied, real = tiny_fm("bert"), [], nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(id(self)) or real(self, memo))
    compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))
    cut = {id(parameter) for ffn in find_ffns(fm)[1:] for parameter, _ in ffn.neuron_axes()}
    assert set(copied) == {id(parameter) for parameter in fm.parameters()} - cut


def test_at_least_one_neuron_stays():
    sub_fm, _ = compress(tiny_fm("bert"), retained_ratio=1e-6)
    assert [ffn.num_neurons for ffn in find_ffns(sub_fm)] == [1, 1, 1]


def test_negative_layers_count_from_the_last():
    _, neuron_map = compress(tiny_fm("bert"), retained_ratio=0.5, uncompressed_layers=(0, -1))
    assert neuron_map.compressed_layers == (1,)
    assert resolve_layers((-3, 0, 2), 3) == {0, 2}


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01])
def test_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=rf"retained_ratio: found {ratio}, allowed: a fraction in \(0, 1\]"):
        compress(tiny_fm("bert"), retained_ratio=ratio)


@pytest.mark.parametrize("layer", [3, -4])
def test_layer_out_of_range_is_refused(layer):
    with pytest.raises(ValueError, match=f"uncompressed_layers: found {layer}, allowed: -3 to 2"):
        compress(tiny_fm("bert"), retained_ratio=0.5, uncompressed_layers=(layer,))


def test_transformer_parameters_are_those_of_the_paper():
    """BERT-base with layers 0 and 11 whole and 768 of 3072 neurons elsewhere: 47 Mi of 81 Mi."""
    with torch.device("meta"):
        fm = BertModel(AutoConfig.for_model("bert"))
    assert round(num_transformer_parameters(fm) / 2**20) == 81
    for ffn in find_ffns(fm)[1:-1]:
        ffn.keep_neurons(torch.arange(768))
    assert round(num_transformer_parameters(fm) / 2**20) == 47


def test_a_scorer_may_be_given_by_name():
    fm = tiny_fm("bert")
    _, by_name = compress(fm, retained_ratio=0.5, scorer="weight_norm")
    _, by_default = compress(fm, retained_ratio=0.5)
    assert all(torch.equal(by_name.retained[layer], by_default.retained[layer]) for layer in by_default.retained)
    with pytest.raises(
        ValueError,
        match="scorer: found 'activation', allowed: weight_norm, random, or a function such as",
    ):
        compress(fm, retained_ratio=0.5, scorer="activation")


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_a_changed_sub_fm_comes_back_bit_for_bit_from_its_fm_and_its_tensors(model_type):
    fm = tiny_fm(model_type)
    sub_fm, neuron_map = compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))
    with torch.no_grad():
        for ffn in find_ffns(sub_fm)[1:]:
            for parameter in ffn.parameters():
                parameter.add_(torch.randn_like(parameter))
    restored, restored_map = restore_sub_fm(fm, sub_fm_tensors(sub_fm, neuron_map))
    assert restored_map.compressed_layers == (1, 2)
    assert all(torch.equal(restored_map.retained[layer], neuron_map.retained[layer]) for layer in (1, 2))
    assert restored.state_dict().keys() == sub_fm.state_dict().keys()
    assert all(torch.equal(value, sub_fm.state_dict()[name]) for name, value in restored.state_dict().items())


def test_tensors_of_another_sub_fm_are_refused():
    tensors = sub_fm_tensors(*compress(tiny_fm("bert"), retained_ratio=0.5))
    with pytest.raises(ValueError, match="names differ"):
        restore_sub_fm(tiny_fm("bert"), {name: value for name, value in tensors.items() if name != "1.up.bias"})
    with pytest.raises(ValueError, match=r"'1\.up\.bias': found \(3,\), the FM has \(12,\)"):
        restore_sub_fm(tiny_fm("bert"), tensors | {"1.up.bias": torch.zeros(3)})
