import numpy as np
import pytest
import torch

from fedpft.config import LoraConfig
from fedpft.construct.compress import compress
from fedpft.construct.layer_drop import choose_layers, drop_layers
from fedpft.methods.plugin import adapter_order, plug_in
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import adapter_parameters, attach_lora, get_adapter, merge_adapter, set_adapter
from tests.tiny import EVERY_ROW, FAMILIES, tiny_batch, tiny_fm


def adapted(model, rank=2):
    return attach_lora(model, LoraConfig(rank=rank), seed=0).eval()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_adapter_of_the_sub_fm_fits_the_fm_name_by_name(model_type):
    fm = tiny_fm(model_type)
    sub_fm, _ = compress(fm, retained_ratio=0.25, uncompressed_layers=(1,))
    fm, sub_fm = adapted(fm), adapted(sub_fm)
    adapter_order(fm, sub_fm)
    tuned = get_adapter(sub_fm) + 0.1
    assert get_adapter(plug_in(fm, tuned)).tobytes() == tuned.tobytes()


@pytest.mark.parametrize("model_type", EVERY_ROW)
def test_plugging_in_twice_is_plugging_in_once(model_type):
    fm = adapted(tiny_fm(model_type))
    tuned = get_adapter(fm) + 0.1
    frozen = {n: p.detach().clone() for n, p in fm.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        once = plug_in(fm, tuned)(**tiny_batch(model_type)).logits
        twice = plug_in(plug_in(fm, tuned), tuned)(**tiny_batch(model_type)).logits
    assert torch.equal(once, twice)
    assert all(torch.equal(p, frozen[n]) for n, p in fm.named_parameters() if n in frozen)


def test_the_fm_does_not_alias_the_adapter():
    fm = adapted(tiny_fm("bert"))
    tuned = get_adapter(fm) + 0.1
    kept = tuned.copy()
    plug_in(fm, tuned)
    tuned[:] = np.nan
    assert get_adapter(fm).tobytes() == kept.tobytes()


def test_an_adapter_of_another_length_is_refused():
    fm = adapted(tiny_fm("bert"))
    with pytest.raises(ValueError, match="adapter: found shape"):
        plug_in(fm, get_adapter(fm)[1:])


def test_layouts_that_differ_are_noticed():
    with pytest.raises(AssertionError, match="adapter layouts differ"):
        adapter_order(adapted(tiny_fm("bert"), rank=2), adapted(tiny_fm("bert"), rank=3))


# --- a proxy of fewer layers ---

DEPTH = {"distilbert": "n_layers", "gpt2": "n_layer"}


def layer_drop_pair(model_type, num_layers, **chosen):
    """Return an FM and its proxy of fewer layers, both with LoRA on the layers that correspond, and the layer map."""
    fm = tiny_fm(model_type, **{DEPTH.get(model_type, "num_hidden_layers"): num_layers})
    layer_map = choose_layers(num_layers, **chosen)
    proxy = drop_layers(fm, layer_map)
    config = LoraConfig(rank=2)
    return attach_lora(fm, config, 0, layer_map.tuned_in_fm), attach_lora(proxy, config, 0, layer_map.tuned), layer_map


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    ("num_layers", "adapter_layers", "kept_layers"),
    [(4, 1, 3), (13, 2, 4), (14, 6, 13)],
)
def test_every_tensor_arrives_at_the_layer_that_it_belongs_to(model_type, num_layers, adapter_layers, kept_layers):
    fm, proxy, layer_map = layer_drop_pair(
        model_type, num_layers, adapter_layers=adapter_layers, kept_layers=kept_layers
    )
    tuned = np.random.default_rng(0).permutation(len(get_adapter(proxy))).astype(np.float32)  # all entries differ
    set_adapter(proxy, tuned)
    plug_in(fm, tuned, adapter_order(fm, proxy, layer_map.pairs))
    fm_ffns, proxy_ffns = find_ffns(fm), find_ffns(proxy)
    for fm_layer, layer in layer_map.pairs:
        there, here = (adapter_parameters(ffns[i].layer) for ffns, i in ((fm_ffns, fm_layer), (proxy_ffns, layer)))
        assert there.keys() == here.keys()
        assert bool(here) == (layer in layer_map.tuned)
        assert all(torch.equal(there[name], here[name]) for name in here)
    heads = [{n: p for n, p in adapter_parameters(model).items() if "modules_to_save" in n} for model in (fm, proxy)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[1])
    assert sorted(get_adapter(fm)) == sorted(tuned)


def test_with_more_than_ten_layers_the_order_is_by_name_in_either_model_and_not_the_same():
    """FM: 0, 1, 10, 11, 2, ... as text; the proxy's layers 0, 1, 2, 3 are the FM's 0, 1, 12, 13."""
    fm, proxy, layer_map = layer_drop_pair("bert", 14, adapter_layers=6, kept_layers=12)
    order = adapter_order(fm, proxy, layer_map.pairs)
    names = [name for name in adapter_parameters(fm) if name.endswith("query.lora_A.default.weight")]
    assert [name.split(".")[5] for name in names] == ["0", "1", "10", "11", "12", "13", "2", "3", "4", "5", "8", "9"]
    assert sorted(order) == list(range(len(get_adapter(proxy))))
    assert (order != np.arange(len(order))).any()


def test_without_dropped_layers_the_order_is_the_proxys_own():
    fm, proxy, layer_map = layer_drop_pair("bert", 12, adapter_layers=2, kept_layers=12)
    order = adapter_order(fm, proxy, layer_map.pairs)
    assert np.array_equal(order, np.arange(len(order)))


def test_layouts_that_do_not_correspond_are_noticed():
    fm, proxy, _ = layer_drop_pair("bert", 6, adapter_layers=1, kept_layers=4)
    with pytest.raises(AssertionError, match="adapter layouts differ"):
        adapter_order(fm, proxy, [(0, 0), (5, 2)])  # the proxy has its adapter in 0 and 3
    with pytest.raises(AssertionError, match="adapter layouts differ"):
        adapter_order(adapted(tiny_fm("bert")), adapted(tiny_fm("bert"), rank=3), [(0, 0), (1, 1), (2, 2)])


@pytest.mark.parametrize("change", [lambda v: v[1:], lambda v: np.append(v, np.float32(0))])
def test_an_adapter_of_another_length_than_the_order_is_refused(change):
    fm, proxy, layer_map = layer_drop_pair("bert", 6, adapter_layers=1, kept_layers=4)
    with pytest.raises(ValueError, match="adapter: found shape"):
        plug_in(fm, change(get_adapter(proxy)), adapter_order(fm, proxy, layer_map.pairs))


# --- LoRA on FFNs, of which the sub-FM has a part ---

ALL_LINEAR = LoraConfig(rank=2, target_modules=("all-linear",))


def ffn_lora_pair(model_type):
    """Return an FM and its sub-FM, each with LoRA on all its linear layers, and the neurons that the sub-FM kept."""
    fm = tiny_fm(model_type)
    sub_fm, neuron_map = compress(fm, retained_ratio=0.5, uncompressed_layers=(1,))
    fm, sub_fm = (attach_lora(model, ALL_LINEAR, 0).eval().double() for model in (fm, sub_fm))
    return fm, sub_fm, neuron_map.retained


@pytest.mark.parametrize("model_type", EVERY_ROW)
@torch.no_grad()
def test_an_fm_whose_other_neurons_are_silenced_does_with_the_adapter_what_the_sub_fm_does(model_type):
    fm, sub_fm, kept = ffn_lora_pair(model_type)
    assert set(kept) == {0, 2}
    tuned = np.random.default_rng(0).normal(0, 0.3, get_adapter(sub_fm).shape).astype(np.float32)
    set_adapter(sub_fm, tuned)
    plug_in(fm, tuned, adapter_order(fm, sub_fm, neurons=kept))
    batch = tiny_batch(model_type)
    expected = sub_fm(**batch).logits
    before = (fm(**batch).logits - expected).abs().max()
    for layer, neurons in kept.items():
        down = find_ffns(fm)[layer].down_weight
        others = torch.ones(down.shape[1], dtype=torch.bool)
        others[neurons] = False
        down[:, others] = 0
    after = (fm(**batch).logits - expected).abs().max()
    assert after <= 1e-9 * expected.abs().max()
    assert before > 20 * after


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "phi3"])
@torch.no_grad()
def test_neurons_that_no_client_had_stay_as_they_were(model_type):
    fm, sub_fm, kept = ffn_lora_pair(model_type)
    before = [(ffn.up_weight.clone(), ffn.down_weight.clone()) for ffn in find_ffns(fm)]
    tuned = np.random.default_rng(0).normal(0, 0.3, get_adapter(sub_fm).shape).astype(np.float32)
    plug_in(fm, tuned, adapter_order(fm, sub_fm, neurons=kept))
    merged = merge_adapter(fm)
    for ffn, (up, down) in zip(find_ffns(merged), before, strict=True):
        tuned_neurons = kept.get(ffn.index, torch.arange(len(up)))
        moved = ((ffn.up_weight != up).any(1), (ffn.down_weight != down).any(0))
        for rows in moved:
            assert rows.nonzero().flatten().tolist() == sorted(tuned_neurons.tolist())


def test_an_adapter_without_the_neurons_that_it_is_for_is_noticed():
    fm, sub_fm, kept = ffn_lora_pair("bert")
    with pytest.raises(AssertionError, match="adapter layouts differ"):
        adapter_order(fm, sub_fm)
    with pytest.raises(ValueError, match=r"^LoRA: found shapes .* for 5 neurons"):
        adapter_order(fm, sub_fm, neurons={layer: neurons[:5] for layer, neurons in kept.items()})
    with pytest.raises(ValueError, match=r"^adapter: found shape"):
        plug_in(fm, get_adapter(fm), adapter_order(fm, sub_fm, neurons=kept))
