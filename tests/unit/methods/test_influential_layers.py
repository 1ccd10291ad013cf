"""FedProxy: the layers of least influence go, all others are tuned."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpft.align.public import PublicData
from fedpft.config import CacheConfig, Config, ConfigError, LoraConfig, MethodConfig, ServerConfig
from fedpft.construct.block_influence import block_influence, most_influential
from fedpft.methods import METHODS
from fedpft.methods.influential_layers import InfluentialLayers
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import adapter_parameters, get_adapter
from fedpft.trainer import SilentProgress
from tests.tiny import ONE_FAMILY_PER_ROW, tiny_batch, tiny_fm

DEPTH = {"distilbert": "n_layers", "gpt2": "n_layer"}


def deep_fm(model_type="bert"):
    return tiny_fm(model_type, **{DEPTH.get(model_type, "num_hidden_layers"): 5})


def method(fm, model_type="bert", cache=None, **settings):
    batch = tiny_batch(model_type, batch_size=8)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(8)]
    config = Config(
        lora=LoraConfig(rank=2, lora_alpha=4),
        method=MethodConfig(name="fedproxy", **({"kept_layers": 3} | settings)),
        server=ServerConfig(accelerator="cpu"),
        cache=CacheConfig(enabled=cache is not None, dir=None if cache is None else str(cache)),
    )
    public = PublicData(dataset=rows, collate=torch.utils.data.default_collate, identity=lambda: {"digest": "8"})
    return InfluentialLayers(fm, public, config, SilentProgress())


def silence(fm, *layers):
    """Let layers add nothing to what they get: attention's and FFN's outputs are 0."""
    for layer in layers:
        for name, parameter in find_ffns(fm)[layer].layer.named_parameters():
            if "down_proj" in name or "o_proj" in name:
                parameter.data.zero_()


def test_influence_is_1_minus_the_cosine_of_what_enters_and_leaves_a_layer_without_padding():
    fm, batch = deep_fm(), tiny_batch("bert")
    batch["attention_mask"][0, 4:] = 0
    found = block_influence(fm, [batch, tiny_batch("bert", seed=2)])
    seen = [[] for _ in found]
    for each in (batch, tiny_batch("bert", seed=2)):
        with torch.no_grad():
            states = fm(**each, output_hidden_states=True).hidden_states
        for layer, (before, after) in enumerate(pairwise(states)):
            cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1)
            seen[layer].append(cosine[each["attention_mask"].bool()])
    assert found == pytest.approx([1 - float(torch.cat(values).mean()) for values in seen], abs=1e-6)


def test_layers_that_do_nothing_are_removed(tmp_path):
    fm = deep_fm("llama")
    silence(fm, 1, 3)
    proxy = method(fm, "llama").build_proxy()
    assert proxy.construction["block_influence"][1] == pytest.approx(0, abs=1e-6)
    assert proxy.layer_pairs == ((0, 0), (2, 1), (4, 2))
    with torch.no_grad():
        batch = tiny_batch("llama")
        assert torch.allclose(proxy.model(**batch).logits, fm(**batch).logits, atol=1e-6), "nothing is missing"


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_every_kept_layer_is_tuned_and_its_adapter_arrives_at_its_layer_of_the_fm(model_type):
    made = method(deep_fm(model_type), model_type)
    proxy = made.build_proxy()
    adapter = np.arange(len(get_adapter(proxy.model)), dtype=np.float32)
    ours, theirs = (adapter_parameters(m) for m in (made.proxy_with(adapter), made.plug_in(adapter)))
    assert len(ours) == len(theirs)
    assert sorted(map(float, torch.cat([p.detach().flatten() for p in theirs.values()]))) == list(map(float, adapter))
    kept = [fm_layer for fm_layer, _ in proxy.layer_pairs]
    assert made.saved_proxy()["kept_layers"].tolist() == kept == proxy.construction["kept_layers"]


def test_it_is_restored_as_it_was_without_measuring_again(monkeypatch, tmp_path):
    first = method(deep_fm())
    proxy, saved = first.build_proxy(), first.saved_proxy()
    monkeypatch.setattr("fedpft.methods.influential_layers.block_influence", None)
    again = method(deep_fm()).build_proxy(saved)
    assert again.layer_pairs == proxy.layer_pairs
    assert np.array_equal(get_adapter(again.model), get_adapter(proxy.model))


def test_the_cache_keeps_it_and_another_number_of_layers_is_another_entry(tmp_path):
    found = [method(deep_fm(), cache=tmp_path, kept_layers=kept).build_proxy() for kept in (3, 3, 2)]
    assert [proxy.construction["cached"] for proxy in found] == [False, True, False]
    assert found[1].layer_pairs == found[0].layer_pairs
    assert len(found[2].layer_pairs) == 2


def test_of_equal_influence_the_first_stay_and_too_many_layers_are_refused():
    assert most_influential([0.5, 0.1, 0.5, 0.5], 2) == (0, 2)
    assert METHODS["fedproxy"] is InfluentialLayers
    with pytest.raises(ConfigError, match=r"method.kept_layers: found 6, allowed: 1 to 5, the FM's layers"):
        method(deep_fm(), kept_layers=6)
