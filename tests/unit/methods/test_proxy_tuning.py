import numpy as np
import pytest
import torch

import fedpft.methods.proxy_tuning as module_under_test
from fedpft.align.public import AlignmentReport, PublicData
from fedpft.config import (
    AlignConfig,
    CacheConfig,
    Config,
    ConfigError,
    LayerAlignConfig,
    LoraConfig,
    MethodConfig,
    NeuronAlignConfig,
    ServerConfig,
)
from fedpft.methods import METHODS
from fedpft.methods.proxy_tuning import ProxyTuning
from fedpft.models.activations import ActivationCounts
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import get_adapter
from fedpft.models.patches import HeldWeights, num_bytes
from fedpft.models.weights import pack_model, replace_weights, unpack_model
from fedpft.trainer import SilentProgress
from tests.tiny import DEBERTA_V2_XLARGE, ONE_FAMILY_PER_ROW, OUTPUT_NORM_FAMILIES, tiny_batch, tiny_fm

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode", "ignore:Converting a tensor")
RATIO = 0.25


def method(model_type="bert", *, fm=None, layers="none", neurons="distill", interval=2, seed=0, lora=(), **settings):
    """Return the method on 8 public examples, layer 0 uncompressed, 24 -> 12 neurons elsewhere."""
    batch = tiny_batch(model_type, batch_size=8)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(8)]
    public = PublicData(dataset=rows, collate=torch.utils.data.default_collate)
    short = {"num_steps": 3, "batch_size": 4, "lr": 1e-2}
    config = Config(
        seed=seed,
        lora=LoraConfig(rank=2, lora_alpha=4, target_modules=lora),
        method=MethodConfig(**({"retained_ratio": 0.5, "uncompressed_layers": (0,)} | settings)),
        align=AlignConfig(
            layers=LayerAlignConfig(kind=layers, **short),
            neurons=NeuronAlignConfig(kind=neurons, interval=interval, update_ratio=RATIO, **short),
        ),
        server=ServerConfig(accelerator="cpu"),
        cache=CacheConfig(enabled=False),
    )
    return ProxyTuning(fm or tiny_fm(model_type), public, config, SilentProgress())


def counts(seed=0):
    """Return counts of two compressed layers of 12 neurons, without ties."""
    rng = np.random.default_rng(seed)
    return ActivationCounts(zeros=tuple(rng.permutation(12) + 1 for _ in range(2)), positions=np.array([20, 20]))


def least_used(found):
    """Return, per compressed layer, the 3 of 12 neurons with the most zeros."""
    return {layer: set(np.argsort(-zeros)[:3].tolist()) for layer, zeros in zip((1, 2), found.zeros, strict=True)}


def copies(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def somewhere(proxy):
    return get_adapter(proxy.model) + 0.05


def test_it_is_registered_under_its_name():
    assert METHODS["fedpft"] is ProxyTuning


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_fm_and_proxy_start_with_the_same_adapter_and_the_fm_with_its_own_outputs(model_type):
    fm, batch = tiny_fm(model_type), tiny_batch(model_type)
    with torch.no_grad():
        plain = fm(**batch).logits
        made = method(model_type, fm=fm)
        proxy = made.build_proxy()
        adapter = get_adapter(proxy.model)
        assert torch.equal(made.plug_in(adapter)(**batch).logits, plain)
    assert get_adapter(made.plug_in(adapter)).tobytes() == adapter.tobytes()
    assert proxy.watched_layers == (1, 2)
    assert [ffn.num_neurons for ffn in find_ffns(proxy.model)] == [24, 12, 12]
    assert made.proxy_with(adapter) is proxy.model


@pytest.mark.parametrize("model_type", ["bert", "vit", "gpt2", "llama"])
def test_plug_in_sets_and_never_adds(model_type):
    made = method(model_type)
    proxy = made.build_proxy()
    first, second = somewhere(proxy), somewhere(proxy) + 0.1

    @torch.no_grad()
    def logits(adapter):
        return made.plug_in(adapter)(**tiny_batch(model_type)).logits

    once, other = logits(first), logits(second)
    assert torch.equal(logits(second), other)
    assert torch.equal(logits(first), once)
    assert not torch.equal(once, other)
    assert get_adapter(made.plug_in(first)).tobytes() == first.tobytes()


@pytest.mark.parametrize("model_type", ["bert", "vit", "gpt2", "llama"])
def test_the_fms_own_weights_are_bit_identical_through_everything(model_type):
    fm = tiny_fm(model_type)
    own = list(fm.parameters())
    before = [parameter.detach().clone() for parameter in own]
    made = method(model_type, fm=fm, layers="distill")
    proxy = made.build_proxy()
    adapter = somewhere(proxy)
    made.plug_in(adapter)
    made.after_round(2, adapter, counts())
    made.plug_in(adapter + 1)
    assert all(torch.equal(now, then) for now, then in zip(own, before, strict=True))
    assert not made.plug_in(adapter).training


def test_teacher_and_student_carry_the_current_aggregate_while_neurons_align(monkeypatch):
    made = method()
    proxy = made.build_proxy()
    seen = []

    def spy(fm, sub_fm, config, context, *, neuron_masks):
        seen.append((fm, sub_fm, get_adapter(fm), get_adapter(sub_fm), context.seed, neuron_masks))
        return AlignmentReport(first_loss=1.0, last_loss=0.5, measured_before=1.0, measured_after=0.5)

    monkeypatch.setitem(module_under_test.NEURON_ALIGNERS, "distill", spy)
    for round_index, offset in ((2, 0.1), (4, 0.2)):
        made.plug_in(somewhere(proxy) - 7)  # an evaluation of something else in between
        made.proxy_with(somewhere(proxy) - 8)
        aggregate = somewhere(proxy) + offset
        made.after_round(round_index, aggregate, counts(round_index))
        fm, sub_fm, teacher, student, _, masks = seen[-1]
        assert teacher.tobytes() == student.tobytes() == aggregate.astype(np.float32).tobytes()
        assert fm is made.plug_in(aggregate)
        assert sub_fm is proxy.model
        chosen = {layer: set(mask.nonzero().flatten().tolist()) for layer, mask in masks.items()}
        assert chosen == least_used(counts(round_index))
    assert seen[0][4] != seen[1][4], "other public examples each time"


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_only_least_used_neurons_of_compressed_layers_change_in_the_broadcast(model_type):
    made = method(model_type)
    proxy = made.build_proxy()
    adapter = somewhere(proxy)
    made.proxy_with(adapter)
    before = copies(proxy.model)
    change = made.after_round(2, adapter, counts())
    ffns = find_ffns(proxy.model)
    names = {id(parameter): name for name, parameter in proxy.model.named_parameters()}
    assert set(change.weights) == {names[id(p)] for layer in (1, 2) for p in ffns[layer].parameters()}
    for layer, chosen in least_used(counts()).items():
        for parameter, axis in ffns[layer].neuron_axes():
            name = names[id(parameter)]
            differs = torch.from_numpy(change.weights[name]) != before[name]
            other_axes = tuple(a for a in range(differs.dim()) if a != axis)
            touched = differs.any(dim=other_axes) if other_axes else differs
            for half in touched.split(12):  # a fused projection has two
                assert set(half.nonzero().flatten().tolist()) == chosen, name
    for name, parameter in proxy.model.named_parameters():
        sent = change.weights.get(name)
        assert torch.equal(parameter.detach(), before[name] if sent is None else torch.from_numpy(sent)), name
    losses = ("align/loss_before", "align/loss", "align/measured_loss_before", "align/measured_loss")
    assert change.metrics.keys() == set(losses)


def test_a_closed_form_change_is_the_chosen_columns_and_the_bias_of_down():
    made = method(neurons="closed_form")
    proxy = made.build_proxy()
    before = copies(proxy.model)
    change = made.after_round(2, somewhere(proxy), counts())
    ffns = find_ffns(proxy.model)
    names = {id(parameter): name for name, parameter in proxy.model.named_parameters()}
    assert set(change.weights) == {names[id(p)] for layer in (1, 2) for p in ffns[layer].down.parameters()}
    for layer, chosen in least_used(counts()).items():
        name = names[id(ffns[layer].down.weight)]
        touched = (torch.from_numpy(change.weights[name]) != before[name]).any(dim=0)
        assert set(touched.nonzero().flatten().tolist()) == chosen


@pytest.mark.parametrize("neurons", ["distill", "closed_form"])
@pytest.mark.parametrize("model_type", ["bert", "dinov2", "gpt2", "llama", "phi3"])
def test_neurons_with_lora_on_them_are_aligned_too(model_type, neurons):
    made = method(model_type, neurons=neurons, lora=("all-linear",))
    proxy = made.build_proxy()
    adapter = get_adapter(proxy.model)
    tuned = adapter + np.random.default_rng(0).normal(0, 0.1, adapter.shape).astype(np.float32)
    change = made.after_round(2, tuned, counts())
    assert change.metrics["align/measured_loss"] < change.metrics["align/measured_loss_before"]
    assert change.weights
    assert not [name for name in change.weights if "lora_" in name]
    assert get_adapter(made.proxy_with(tuned)).tobytes() == tuned.tobytes()


@pytest.mark.parametrize("model_type", OUTPUT_NORM_FAMILIES)
def test_a_refit_of_neurons_behind_a_norm_is_refused_where_down_has_lora(model_type):
    with pytest.raises(ConfigError, match=r"^align\.neurons\.kind: found closed_form with LoRA on the FFNs of"):
        method(model_type, neurons="closed_form", lora=("all-linear",))
    method(model_type, neurons="closed_form", lora=("up_proj",))
    method(model_type, neurons="distill", lora=("all-linear",))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", []),
        ("distill", ["distill"]),
        ("closed_form", ["closed_form"]),
        ("closed_form+distill", ["closed_form", "distill"]),
    ],
)
def test_layers_are_aligned_by_the_kinds_named_in_that_order(monkeypatch, kind, expected):
    calls = []

    def spy(name):
        def align(*_, **__):
            calls.append(name)
            losses = {"first_loss": 10.0 - len(calls), "last_loss": 5.0 - len(calls)}
            return AlignmentReport(**losses, measured_before=1.0, measured_after=0.5)

        return align

    for name in ("distill", "closed_form"):
        monkeypatch.setitem(module_under_test.LAYER_ALIGNERS, name, spy(name))
    construction = method(layers=kind).build_proxy().construction
    assert calls == expected
    if expected:
        assert construction["align_loss_first"] == 9.0
        assert construction["align_loss_last"] == 5.0 - len(expected)


@pytest.mark.parametrize("after", [1.0, float("nan")])
def test_an_alignment_that_does_not_lower_its_measured_loss_is_told_and_recorded(monkeypatch, after):
    report = AlignmentReport(first_loss=1.0, last_loss=0.5, measured_before=1.0, measured_after=after)
    monkeypatch.setitem(module_under_test.LAYER_ALIGNERS, "closed_form", lambda *_, **__: report)
    monkeypatch.setitem(module_under_test.NEURON_ALIGNERS, "distill", lambda *_, **__: report)
    made = method(layers="closed_form+distill")
    useless = f"does not lower the loss on the public examples on which it is measured: 1 before, {after:.4g} after$"
    with pytest.warns(UserWarning, match=rf"^align.layers.kind = closed_form {useless}") as caught:
        proxy = made.build_proxy()
    assert sum("does not lower" in str(line.message) for line in caught) == 1, "the distillation after it did"
    measured = proxy.construction["align_measured"]
    assert measured["closed_form"] == pytest.approx({"before": 1.0, "after": after}, nan_ok=True)
    assert measured["distill"]["after"] < measured["distill"]["before"]
    with pytest.warns(UserWarning, match=rf"^align.neurons.kind = distill, round 2, {useless}"):
        metrics = made.after_round(2, get_adapter(proxy.model), counts()).metrics
    assert metrics["align/measured_loss_before"] == 1.0


@pytest.mark.parametrize("scorer", ["weight_norm", "activation", "greedy", "random"])
def test_every_scorer_gives_a_proxy_and_the_same_one_again(scorer):
    first, second = (method(scorer=scorer, layers="closed_form").build_proxy().model for _ in range(2))
    assert [ffn.num_neurons for ffn in find_ffns(first)] == [24, 12, 12]
    weights = dict(second.named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in first.named_parameters())


@pytest.mark.parametrize("neurons", ["distill", "closed_form"])
def test_a_place_that_takes_the_change_over_has_the_servers_proxy(neurons):
    made = method(neurons=neurons)
    proxy = made.build_proxy()
    packed = pack_model(proxy.model)
    place, held = unpack_model(packed), HeldWeights(packed.weights)
    adapter = get_adapter(proxy.model)
    for round_index in (2, 4):
        weights = made.after_round(round_index, adapter, counts(round_index)).weights
        changes = held.changes(weights)
        assert num_bytes(changes) < 0.7 * num_bytes(weights), "of half the neurons"
        replace_weights(place, changes)
    server = dict(made.proxy_with(adapter).named_parameters())
    assert all(torch.equal(parameter, server[name]) for name, parameter in place.named_parameters())


def test_the_broadcast_is_a_copy():
    made = method()
    proxy = made.build_proxy()
    adapter = get_adapter(proxy.model)
    first = made.after_round(2, adapter, counts()).weights
    kept = {name: array.copy() for name, array in first.items()}
    made.after_round(4, adapter, counts(1))
    assert all(np.array_equal(first[name], kept[name]) for name in first)


def test_alignment_gives_the_same_weights_again():
    def weights():
        made = method(layers="distill")
        proxy = made.build_proxy()
        return made.after_round(2, somewhere(proxy), counts()).weights

    first, second = weights(), weights()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_only_the_adapter_of_the_proxy_trains_after_an_alignment():
    made = method(layers="distill")
    proxy = made.build_proxy()
    trainable = {name for name, p in proxy.model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name or "modules_to_save" in name for name in trainable)
    made.after_round(2, get_adapter(proxy.model), counts())
    assert {name for name, p in proxy.model.named_parameters() if p.requires_grad} == trainable
    assert all(p.grad is None for p in proxy.model.parameters())


@pytest.mark.parametrize("num_rounds", [4, 5, 6])
def test_counts_are_wanted_every_interval_but_not_in_the_last_round(num_rounds):
    made = method(interval=2)
    made.build_proxy()
    wanted = [i for i in range(1, num_rounds + 1) if made.wants_counts(i, num_rounds)]
    assert wanted == {4: [2], 5: [2, 4], 6: [2, 4]}[num_rounds]


@pytest.mark.parametrize(
    ("settings", "layers_aligned", "wants"),
    [
        ({"layers": "none", "neurons": "none"}, False, False),
        ({"layers": "distill", "neurons": "none"}, True, False),
        ({"layers": "none", "neurons": "distill"}, False, True),
        ({"layers": "distill", "neurons": "distill"}, True, True),
        ({"layers": "distill", "neurons": "distill", "uncompressed_layers": (0, 1, 2)}, False, False),
    ],
)
def test_ablations_leave_out_alignments(monkeypatch, settings, layers_aligned, wants):
    calls = []

    def spy(*_, layers):
        calls.append(layers)
        return AlignmentReport(first_loss=1.0, last_loss=0.5, measured_before=1.0, measured_after=0.5)

    monkeypatch.setitem(module_under_test.LAYER_ALIGNERS, "distill", spy)
    made = method(**settings)
    made.build_proxy()
    assert calls == ([(1, 2)] if layers_aligned else [])
    assert made.wants_counts(2, 10) == wants


@pytest.mark.parametrize("layers", [(3,), (-4,), (0, 7)])
def test_layers_that_the_fm_does_not_have_are_refused(layers):
    with pytest.raises(ConfigError, match=r"^method.uncompressed_layers: .*") as error:
        method(uncompressed_layers=layers)
    assert "3" in str(error.value), "the number of layers"
    assert "\n" not in str(error.value)


def test_the_random_scorer_follows_the_seed():
    first, second = (copies(method(scorer="random", seed=seed).build_proxy().model) for seed in (0, 1))
    name = next(name for name in first if name.endswith("1.intermediate.dense.weight"))
    assert not torch.equal(first[name], second[name])


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_a_saved_proxy_comes_back_bit_for_bit_and_is_aligned_on_alike(model_type):
    made, restored = (method(model_type, layers="distill") for _ in range(2))
    adapter = somewhere(made.build_proxy())
    made.after_round(2, adapter, counts())
    proxy = restored.build_proxy(made.saved_proxy())
    assert proxy.watched_layers == (1, 2)

    def check():
        found, expected = restored.proxy_with(adapter).state_dict(), made.proxy_with(adapter).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    check()
    changes = [one.after_round(4, adapter, counts(1)).weights for one in (made, restored)]
    check()
    assert all(np.array_equal(changes[0][name], changes[1][name]) for name in changes[0])


def test_a_saved_proxy_is_a_copy():
    made = method()
    adapter = somewhere(made.build_proxy())
    saved = made.saved_proxy()
    before = {name: tensor.clone() for name, tensor in saved.items()}
    made.after_round(2, adapter, counts())
    assert all(torch.equal(saved[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("kinds", "key"), [({"layers": "closed_form+distill"}, "layers"), ({"neurons": "closed_form"}, "neurons")]
)
def test_a_model_that_no_closed_form_can_walk_is_refused_before_anything_is_built(kinds, key):
    fm = tiny_fm("deberta-v2", **DEBERTA_V2_XLARGE)
    with pytest.raises(
        ConfigError, match=rf"^align\.{key}\.kind: found closed_form for a DebertaV2Model with encoder\.conv"
    ):
        method("deberta-v2", fm=fm, **kinds)


def test_a_model_with_a_convolution_between_its_layers_is_distilled():
    made = method("deberta-v2", fm=tiny_fm("deberta-v2", **DEBERTA_V2_XLARGE), layers="distill")
    adapter = somewhere(made.build_proxy())
    assert made.after_round(2, adapter, counts()).weights
