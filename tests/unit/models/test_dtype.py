"""Models whose frozen weights are bfloat16."""

import copy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fedpft.align.closed_form import refit_layers, refit_neurons
from fedpft.align.distill import align_layers, align_neurons
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import (
    Config,
    ConfigError,
    FMConfig,
    LayerAlignConfig,
    LoraConfig,
    MethodConfig,
    NeuronAlignConfig,
    PoolConfig,
    PretrainConfig,
    ServerConfig,
    changed_settings,
)
from fedpft.construct.compress import compress
from fedpft.federated.client import LocalClient
from fedpft.federated.messages import RoundPlan
from fedpft.models.ffn import find_ffns
from fedpft.models.loading import architecture, load_fm, load_sub_fm
from fedpft.models.lora import (
    adapter_parameters,
    attach_lora,
    get_adapter,
    load_adapter,
    save_adapter,
    set_adapter,
    without_adapter,
)
from fedpft.models.weights import as_array, as_tensor, pack_model, replace_weights, unpack_model
from tests.tiny import (
    ONE_FAMILY_PER_ROW,
    TINY_CONFIGS,
    modality_of,
    tiny_batch,
    tiny_fm,
    tiny_lm,
    tiny_package,
)

BF16 = torch.bfloat16
LORA = LoraConfig(rank=2, lora_alpha=4)
MIXED = ServerConfig(accelerator="cpu", precision="bf16-mixed")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Return a function that opens a family's tiny FM, stored in float32, in a type; each time a copy."""
    kept = {}

    def open_(family, dtype="bfloat16"):
        if (family, dtype) not in kept:
            folder = tmp_path_factory.mktemp(family)
            tiny_fm(family, num_labels=2).save_pretrained(folder)
            kept[family, dtype] = load_fm(
                FMConfig(path=str(folder), dtype=dtype),
                modality=modality_of(family),
                num_labels=2,
                seed=0,
                pad_token_id=0,
            )
        return copy.deepcopy(kept[family, dtype])

    return open_


def frozen_types(model):
    """Return the types of all weights but the adapter's and the head that it replaces."""
    adapter = ("lora_", "modules_to_save", "original_module")
    return {p.dtype for name, p in model.named_parameters() if not any(part in name for part in adapter)}


def public(family, num_examples=24):
    batch = tiny_batch(family, batch_size=num_examples)
    rows = [{name: value[i] for name, value in batch.items()} for i in range(num_examples)]
    return PublicData(dataset=rows, collate=torch.utils.data.default_collate)


def context(family, server=ServerConfig(accelerator="cpu")):  # noqa: B008 - frozen
    return AlignmentContext(public=public(family), server=server, seed=0)


@pytest.mark.parametrize("family", ONE_FAMILY_PER_ROW)
def test_a_model_in_bfloat16_answers_nearly_as_in_float32_and_tunes_a_float32_adapter(opened, family):
    batch, labels = tiny_batch(family), torch.tensor([0, 1, 0, 1])
    fm = opened(family)
    assert frozen_types(fm) == {p.dtype for p in fm.parameters()} == {BF16}
    models = [attach_lora(model, LORA, seed=0) for model in (opened(family, "float32"), fm)]
    expected, found = (model(**batch, labels=labels) for model in models)
    found.loss.backward()
    assert found.logits.dtype == found.loss.dtype == torch.float32, "the head is tuned, so it is float32"
    assert abs(found.loss - expected.loss) < 0.02 * expected.loss
    assert frozen_types(models[1]) == {BF16}
    adapter = adapter_parameters(models[1])
    assert {p.dtype for p in adapter.values()} == {p.grad.dtype for p in adapter.values()} == {torch.float32}


def test_a_model_from_scratch_is_drawn_in_bfloat16_and_its_sizes_are_known_without_weights():
    config = FMConfig(path="scratch://bert", config=TINY_CONFIGS["bert"], dtype="bfloat16")
    fm = load_fm(config, modality="text", num_labels=2, seed=0)
    shapes = architecture(config, "text", 2)
    assert {p.dtype for p in fm.parameters()} == {p.dtype for p in shapes.parameters()} == {BF16}


def test_a_model_is_never_in_memory_in_float32(opened, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a float32 copy")

    monkeypatch.setattr(torch.nn.Module, "float", refuse)
    assert frozen_types(opened("llama")) == {BF16}


def test_a_packed_model_is_half_as_large_and_comes_out_with_the_same_bits(opened):
    models = {dtype: attach_lora(opened("gpt2", dtype), LORA, seed=0) for dtype in ("float32", "bfloat16")}
    packed = {dtype: pack_model(model) for dtype, model in models.items()}
    kept_whole = sum(p.nbytes for name, p in models["bfloat16"].named_parameters() if p.dtype == torch.float32)
    sizes = {dtype: model.num_bytes - kept_whole for dtype, model in packed.items()}
    assert sizes["bfloat16"] * 2 == sizes["float32"], "all but the float32 adapter and head"
    found, expected = unpack_model(packed["bfloat16"]).state_dict(), models["bfloat16"].state_dict()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_changed_weights_arrive_in_bfloat16_and_bits_of_another_type_are_refused(opened):
    model, new = opened("gpt2"), torch.randn(24).to(BF16)
    name = next(name for name, p in model.named_parameters() if p.shape == new.shape)
    replace_weights(model, {name: as_array(new)})
    assert torch.equal(dict(model.named_parameters())[name], new)
    with pytest.raises(ValueError, match="float32"):
        replace_weights(model, {name: new.float().numpy()})


def test_arrays_of_bfloat16_keep_every_bit():
    tensor = torch.tensor([0.0, -0.0, 1.5, float("inf"), float("nan"), 1e-40], dtype=BF16)
    array = as_array(tensor)
    assert array.dtype == np.uint16
    assert torch.equal(as_tensor(array, BF16).view(torch.uint16), tensor.view(torch.uint16))


@pytest.mark.parametrize("family", ["bert", "gemma2", "gpt2"])
@pytest.mark.parametrize("kind", ["closed_form", "distill"])
def test_a_sub_fm_in_bfloat16_is_aligned_nearly_as_one_in_float32(opened, family, kind):
    config = LayerAlignConfig(num_examples=24, batch_size=4, num_steps=12, lr=5e-3, refit="down")
    reports = {}
    for dtype in ("float32", "bfloat16"):
        fm = opened(family, dtype)
        sub_fm, _ = compress(fm, retained_ratio=0.5)
        align = refit_layers if kind == "closed_form" else align_layers
        reports[dtype] = align(fm, sub_fm, config, context(family, MIXED), layers=[0, 1, 2])
        assert {p.dtype for p in sub_fm.parameters()} == {getattr(torch, dtype)}
    found, expected = reports["bfloat16"], reports["float32"]
    near = {"rel": 0.03, "abs": 6e-5}  # 6e-5 is what rounding a hidden state to 8 bits in every layer costs
    assert found.measured_before == pytest.approx(expected.measured_before, **near)
    assert found.measured_after < found.measured_before
    assert found.measured_after == pytest.approx(expected.measured_after, **near)


@pytest.mark.parametrize("kind", ["closed_form", "distill"])
def test_neurons_that_an_alignment_does_not_choose_keep_their_bits(opened, kind):
    fm = opened("bert")
    sub_fm, _ = compress(fm, retained_ratio=0.5)
    mask = torch.arange(12) < 3
    before = find_ffns(sub_fm)[1].down_weight.clone()
    align = refit_neurons if kind == "closed_form" else align_neurons
    config = NeuronAlignConfig(num_examples=24, batch_size=4, num_steps=4, lr=1e-2)
    align(fm, sub_fm, config, context("bert", MIXED), neuron_masks={1: mask})
    after = find_ffns(sub_fm)[1].down_weight
    assert torch.equal(after[:, ~mask], before[:, ~mask])
    assert not torch.equal(after[:, mask], before[:, mask])


def test_a_distillation_without_mixed_precision_is_refused(opened):
    fm = opened("bert")
    sub_fm, _ = compress(fm, retained_ratio=0.5)
    with pytest.raises(ConfigError, match=r"server\.precision.*32-true.*bf16-mixed"):
        align_layers(fm, sub_fm, LayerAlignConfig(num_steps=1), context("bert"), layers=[0])


def bf16_package(opened, family, **settings):
    model = attach_lora(opened(family), replace(LORA, dropout=0.1), seed=0)
    return tiny_package(family, model=model, frozen_dtype="bfloat16", **settings)


def plan_for(package):
    adapter = get_adapter(unpack_model(package.proxy))
    return RoundPlan(round_index=1, lr=1e-2, adapter=adapter, count_activations=True)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "gpt2", "phi3"])
def test_clients_that_train_together_end_near_where_each_ends_alone(opened, family):
    package = bf16_package(opened, family)
    assert not package.settings.keeps_bits, "bfloat16's products depend on how many rows there are"
    plan, client = plan_for(package), LocalClient(package)
    alone = [client.fit(plan, client_id) for client_id in (0, 1)]
    together = LocalClient(bf16_package(opened, family, clients_per_batch=2)).fit_together(plan, [0, 1])
    assert frozen_types(client._module.proxy) == {BF16}
    for one, other in zip(alone, together, strict=True):
        assert one.adapter.dtype == other.adapter.dtype == np.float32
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=0.1)
        assert list(one.counts.positions) == list(other.counts.positions)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_clients_result_depends_on_nothing_but_its_plan(opened, precision):
    package = bf16_package(opened, "llama", precision=precision, recomputes=precision == "32-true")
    plan = plan_for(package)
    client = LocalClient(package)
    client.fit(plan, 1)
    again = client.fit(plan, 0)
    assert np.array_equal(again.adapter, LocalClient(package).fit(plan, 0).adapter)


@pytest.mark.parametrize("family", ["bert", "camembert"])  # the second has its head before its backbone
@pytest.mark.parametrize("uncompressed", [(), (0,)], ids=["uniform", "layer 0 whole"])
def test_a_saved_sub_fm_and_its_adapter_open_with_the_same_bits(opened, tmp_path, family, uncompressed):
    sub_fm, _ = compress(opened(family), retained_ratio=0.5, uncompressed_layers=uncompressed)
    model = attach_lora(sub_fm, LORA, seed=0)
    set_adapter(model, np.random.default_rng(0).normal(size=get_adapter(model).size).astype(np.float32))
    batch = tiny_batch(family)
    expected = model(**batch).logits
    save_adapter(model, tmp_path / "adapter")
    without_adapter(model).save_pretrained(tmp_path / "sub_fm")
    found = load_adapter(load_sub_fm(tmp_path / "sub_fm"), tmp_path / "adapter")
    assert frozen_types(found) == {BF16}
    assert torch.equal(found(**batch).logits, expected)


def test_a_language_model_in_bfloat16_has_nearly_the_loss_of_one_in_float32(tmp_path):
    tiny_lm("llama").save_pretrained(tmp_path)
    batch = tiny_batch("llama")
    losses = []
    for dtype in ("float32", "bfloat16"):
        config = FMConfig(path=str(tmp_path), dtype=dtype)
        fm = attach_lora(load_fm(config, modality="text", num_labels=0, seed=0, kind="causal_lm"), LORA, seed=0)
        losses.append(float(fm(**batch, labels=batch["input_ids"]).loss))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.float32


BAD = {
    "float16": (lambda fm: {"fm": fm, "server": ServerConfig(precision="16-mixed")}, r"server\.precision.*16-mixed"),
    "distillation in float32": (lambda fm: {"fm": fm}, r"server\.precision.*32-true.*bf16-mixed.*align\.layers"),
    "pre-training": (lambda fm: {"fm": replace(fm, pretrain=PretrainConfig(num_epochs=1))}, r"fm\.pretrain.*found 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_bfloat16_cannot_do_is_one_line(case):
    settings, message = BAD[case]
    with pytest.raises(ConfigError, match=message) as raised:
        Config(**settings(FMConfig(dtype="bfloat16")))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["full", "my_module:Method"])
def test_a_method_that_distils_no_weights_needs_no_mixed_precision(name):
    config = Config(fm=FMConfig(dtype="bfloat16"), method=MethodConfig(name=name))
    assert (config.fm.dtype, config.server.precision) == ("bfloat16", "32-true")


def test_how_many_clients_train_together_is_part_of_the_numerics():
    of_saved, now = (
        Config(
            fm=FMConfig(dtype="bfloat16"),
            method=MethodConfig(name="full"),
            pool=PoolConfig(accelerator="cpu", clients_per_batch=together),
        )
        for together in (1, 2)
    )
    assert changed_settings(asdict(of_saved), now) == ["pool.clients_per_batch: 1 -> 2"]
