import numpy as np
import pytest
import torch

import fedpft.methods.offsite_tuning as module_under_test
from fedpft.align.public import PublicData
from fedpft.config import (
    AlignConfig,
    CacheConfig,
    Config,
    ConfigError,
    LayerAlignConfig,
    LoraConfig,
    MethodConfig,
    ServerConfig,
)
from fedpft.evaluation.fidelity import measure_fidelity
from fedpft.methods import METHODS
from fedpft.methods.offsite_tuning import OffsiteTuning
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import adapter_parameters, get_adapter
from fedpft.models.weights import pack_model, unpack_model
from fedpft.trainer import SilentProgress
from tests.tiny import ONE_FAMILY_PER_ROW, tiny_batch, tiny_fm

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode", "ignore:Converting a tensor")
DEPTH = {"distilbert": "n_layers", "gpt2": "n_layer"}
SERVER = ServerConfig(accelerator="cpu")


def deep_fm(model_type, num_layers=6):
    return tiny_fm(model_type, **{DEPTH.get(model_type, "num_hidden_layers"): num_layers})


def method(model_type="bert", *, fm=None, layers="none", cache=False, lora=None, lr=1e-2, **settings):
    """Return the method on 8 public examples; of 6 layers the proxy has 0, 1, 4 and 5, the outer two tuned."""
    batch = tiny_batch(model_type, batch_size=8)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(8)]
    config = Config(
        seed=0,
        lora=lora or LoraConfig(rank=2, lora_alpha=4),
        method=MethodConfig(name="fedot", **({"adapter_layers": 1, "kept_layers": 4} | settings)),
        align=AlignConfig(layers=LayerAlignConfig(kind=layers, num_steps=3, batch_size=4, lr=lr)),
        server=SERVER,
        cache=CacheConfig(enabled=cache),
    )
    known = {"identity": lambda: {"digest": f"8 of {model_type}"}} if cache else {}
    public = PublicData(dataset=rows, collate=torch.utils.data.default_collate, **known)
    return OffsiteTuning(fm or deep_fm(model_type), public, config, SilentProgress())


def somewhere(proxy):
    adapter = get_adapter(proxy.model)
    return adapter + np.random.default_rng(0).normal(0, 0.1, adapter.shape).astype(np.float32)


@torch.no_grad()
def logits(model, model_type="bert"):
    return model(**tiny_batch(model_type)).logits


def same(first, second):
    found, expected = first.state_dict(), second.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_is_registered_under_its_name():
    assert METHODS["fedot"] is OffsiteTuning


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_the_proxy_has_the_fms_ends_and_the_adapter_in_them_alone(model_type):
    fm = deep_fm(model_type)
    plain = logits(fm, model_type)
    made = method(model_type, fm=fm)
    proxy = made.build_proxy()
    assert proxy.watched_layers == proxy.num_neurons == ()
    assert proxy.layer_pairs == ((0, 0), (1, 1), (4, 2), (5, 3))
    assert not any(made.wants_counts(round_index, 10) for round_index in range(1, 11))
    carries = [bool(adapter_parameters(ffn.layer)) for ffn in find_ffns(proxy.model)]
    assert carries == [True, False, False, True]
    trainable = {name for name, parameter in proxy.model.named_parameters() if parameter.requires_grad}
    assert trainable == set(adapter_parameters(proxy.model)), "the emulator is frozen"
    adapter = get_adapter(proxy.model)
    plugged_in = made.plug_in(adapter)
    assert [bool(adapter_parameters(ffn.layer)) for ffn in find_ffns(plugged_in)] == [True, *[False] * 4, True]
    assert torch.equal(logits(plugged_in, model_type), plain), "a fresh adapter changes nothing"
    assert made.proxy_with(adapter) is proxy.model
    assert not proxy.model.training


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_plugging_in_gives_the_fm_the_proxys_ends(model_type):
    """The reference: the FM whose outer layers are replaced by the tuned layers of the proxy, by hand."""
    fm = deep_fm(model_type)
    own = [parameter.detach().clone() for parameter in fm.parameters()]
    parameters = list(fm.parameters())
    made = method(model_type, fm=fm, layers="distill")
    proxy = made.build_proxy()
    adapter = somewhere(proxy)
    found = logits(made.plug_in(adapter), model_type)
    assert torch.equal(logits(made.plug_in(adapter), model_type), found), "sets, never adds"
    made.plug_in(somewhere(proxy) + 1)

    whole = method(model_type, adapter_layers=3, kept_layers=6)  # LoRA everywhere, in a model of all layers
    reference = whole.build_proxy().model
    with torch.no_grad():
        for parameter in adapter_parameters(reference).values():
            parameter.zero_()
        tuned = made.proxy_with(adapter)
        for fm_layer, layer in ((0, 0), (5, 3)):
            source = adapter_parameters(find_ffns(tuned)[layer].layer)
            for name, parameter in adapter_parameters(find_ffns(reference)[fm_layer].layer).items():
                parameter.copy_(source[name])
        head = adapter_parameters(tuned)
        for name, parameter in adapter_parameters(reference).items():
            if "modules_to_save" in name:
                parameter.copy_(head[name])
    assert torch.allclose(found, logits(reference, model_type), atol=1e-6)
    assert not torch.allclose(found, logits(tuned, model_type), atol=1e-4)
    assert all(torch.equal(now, then) for now, then in zip(parameters, own, strict=True)), "the FM's own weights"


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_a_proxy_of_all_layers_is_the_fm_with_any_adapter(model_type):
    made = method(model_type, layers="distill", kept_layers=6)
    proxy = made.build_proxy()
    adapter = somewhere(proxy)
    assert torch.equal(logits(made.plug_in(adapter), model_type), logits(made.proxy_with(adapter), model_type))


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_the_meter_compares_the_layers_that_correspond_and_gradients_where_both_have_lora(model_type):
    made = method(model_type)
    proxy = made.build_proxy()
    adapter = somewhere(proxy)
    batch = tiny_batch(model_type) | {"labels": torch.tensor([0, 1, 2, 0])}
    fm, model = made.plug_in(adapter), made.proxy_with(adapter)
    record = measure_fidelity(fm, model, batch, server=SERVER, layers=proxy.layer_pairs).record()
    assert record["hidden_error"][:2] == pytest.approx([0, 0], abs=1e-6), "nothing is dropped before them"
    assert all(error > 1e-3 for error in record["hidden_error"][2:])
    for name in ("gradient_cosine", "gradient_norm_ratio"):
        first, *emulator, last = record[name]
        assert emulator == [None, None]
        assert all(np.isfinite(value) for value in (first, last, record["total"][name]))


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_a_saved_proxy_comes_back_bit_for_bit_and_travels(model_type):
    made, restored = (method(model_type, layers="distill") for _ in range(2))
    adapter = somewhere(made.build_proxy())
    saved = made.saved_proxy()
    proxy = restored.build_proxy(saved)
    assert same(restored.proxy_with(adapter), made.proxy_with(adapter))
    assert same(restored.plug_in(adapter), made.plug_in(adapter))
    assert same(unpack_model(pack_model(proxy.model)), proxy.model)
    assert not same(method(model_type).build_proxy().model, method(model_type, layers="distill").build_proxy().model)


@pytest.mark.parametrize(("kept_layers", "distilled"), [(2, False), (4, True), (6, False)])
def test_an_emulator_is_distilled_if_there_is_one_that_lacks_layers(monkeypatch, kept_layers, distilled):
    calls = []
    real = module_under_test.align_emulator
    monkeypatch.setattr(module_under_test, "align_emulator", lambda *a, **k: calls.append(k) or real(*a, **k))
    proxy = method(layers="distill", kept_layers=kept_layers).build_proxy()
    assert [(list(call["layers"]), call["target"]) for call in calls] == ([([1, 2], 4)] if distilled else [])
    assert ("align_loss_last" in proxy.construction) == distilled


def test_the_same_proxy_is_built_once(monkeypatch):
    first = method(layers="distill", cache=True)
    built = first.build_proxy()
    monkeypatch.setattr(module_under_test, "align_emulator", None)
    again = method(layers="distill", cache=True)
    read = again.build_proxy()
    assert (built.construction["cached"], read.construction["cached"]) == (False, True)
    assert {k: v for k, v in read.construction.items() if k not in ("cached", "seconds")} == {
        k: v for k, v in built.construction.items() if k not in ("cached", "seconds")
    }
    assert same(built.model, read.model)
    others = [method(layers="none", cache=True), method(layers="none", cache=True, kept_layers=5)]
    others += [method(layers="none", cache=True, kept_layers=5, adapter_layers=2)]
    keys = {one.build_proxy().construction["key"] for one in others} | {built.construction["key"]}
    assert len(keys) == 4


def test_a_distillation_that_ends_in_nan_is_refused():
    made = method(layers="distill", lr=1e30)
    with pytest.raises(ConfigError, match=r"^align\.layers: found settings after which \d+ .* NaN"):
        made.build_proxy()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter_layers": 4, "kept_layers": None}, "method.adapter_layers: found 4, allowed: 1 to 3"),
        ({"kept_layers": 7}, "method.kept_layers: found 7, allowed: 2 to 6"),
        ({"lora": LoraConfig(target_modules=("pooler.dense",))}, "lora.target_modules: found 'pooler.dense', which"),
    ],
)
def test_what_the_fm_does_not_have_is_refused_before_any_work(settings, message):
    with pytest.raises(ConfigError) as error:
        method(**settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_no_round_changes_the_proxy():
    with pytest.raises(AssertionError, match="no round wanted counts"):
        method().after_round(2, np.zeros(1), None)
