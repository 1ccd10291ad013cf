"""Frozen weights in 8 and 4 bits, by bitsandbytes: what they compute, what they take, and what stays as it is."""

import copy
import importlib
import sys

import bitsandbytes
import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

from fedpft.config import ConfigError, LoraConfig
from fedpft.models import lora, quantized_linear
from fedpft.models.ffn import find_ffns
from fedpft.models.live_memory import live_memory
from fedpft.models.lora import adapter_parameters, attach_lora, get_adapter, set_adapter
from fedpft.models.quantize import pack_quantized, quantizable, quantize_changes
from fedpft.models.quantized_linear import QuantizedLinear, check_quantizer, linear_weight, without_bitsandbytes
from fedpft.models.weights import as_array, pack_model, unpack_model
from tests.tiny import (
    ONE_FAMILY_PER_ROW,
    WITHOUT_CLASSIFIER,
    tiny_batch,
    tiny_fm,
)

KINDS = ["int8", "nf4"]


def adapted(family, targets=None, **overrides):
    """Return a model with LoRA whose B is not zero."""
    config = LoraConfig(rank=2, dropout=0.0, target_modules=targets or [])
    model = attach_lora(tiny_fm(family, **overrides), config, seed=0)
    set_adapter(model, get_adapter(model) + 0.05)
    return model


def quantized(model, kind):
    return unpack_model(pack_quantized(model, kind))


def dequantized(model, kind):
    """Return the model in float64 with the weights for which its codes stand."""
    other, made = copy.deepcopy(model).double(), quantized(model, kind).double()
    for name in quantizable(model):
        layer, weight = other.get_submodule(name), made.get_submodule(name).weight(torch.float64)
        layer.weight.data = weight.T.clone() if isinstance(layer, Conv1D) else weight
    return other


def step(model, family):
    """Return logits and the adapter's gradients, in float64."""
    batch = tiny_batch(family)
    batch["labels"] = batch["input_ids"] if family in WITHOUT_CLASSIFIER else torch.tensor([0, 1, 2, 0])
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    outputs = model.double()(**batch)
    outputs.loss.backward()
    return outputs.logits, {name: parameter.grad for name, parameter in adapter_parameters(model).items()}


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "nf4") for family in ("bert", "deberta-v2", "gpt2", "modernbert", "vit", *WITHOUT_CLASSIFIER)),
     *((family, "int8") for family in ("bert", "gpt2", "phi3"))],
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_the_weights_for_which_the_codes_stand(family, kind):
    model = adapted(family)
    (expected, wanted), (found, gradients) = (step(m(model, kind), family) for m in (dequantized, quantized))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-9, msg=name)
    (whole, _) = step(model, family)
    assert not torch.allclose(whole, expected, rtol=1e-4, atol=1e-6), "something was rounded"


@pytest.mark.parametrize("family", [*ONE_FAMILY_PER_ROW, *WITHOUT_CLASSIFIER])
def test_all_matrices_inside_the_layers_are_quantised_and_nothing_else_is_touched(family):
    model = adapted(family)
    made, before = quantized(model, "nf4"), dict(model.named_parameters())
    inside = {id(p) for ffn in find_ffns(made) for p in ffn.layer.parameters()}
    tuned = set(adapter_parameters(made))
    for name, parameter in made.named_parameters():
        if name.endswith((".codes", ".scales")):
            continue
        assert torch.equal(parameter, before[name]), name
        assert parameter.requires_grad == before[name].requires_grad
        matrix = parameter.dim() > 1 and id(parameter) in inside and name not in tuned
        assert not matrix, f"{name} in full"
    assert get_adapter(made).tobytes() == get_adapter(model).tobytes()
    assert [ffn.num_neurons for ffn in find_ffns(made)] == [ffn.num_neurons for ffn in find_ffns(model)]


def test_lora_on_ffns_lies_on_quantised_layers_too():
    model = adapted("phi3", ["all-linear"])
    (expected, wanted), (found, gradients) = (step(m(model, "nf4"), "phi3") for m in (dequantized, quantized))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (name,) = [name for name in wanted if "layers.0.mlp.gate_up_proj.lora_A" in name]
    torch.testing.assert_close(gradients[name], wanted[name], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_what_bitsandbytes_own_does(kind):
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 40), torch.randn(5, 7, 128)
    if kind == "nf4":
        theirs = bitsandbytes.nn.Linear4bit(128, 40, quant_type="nf4", compress_statistics=False)
    else:
        theirs = bitsandbytes.nn.Linear8bitLt(128, 40, has_fp16_weights=False)
    theirs.load_state_dict(layer.state_dict())
    theirs = theirs.train().to("cpu")  # which quantises; a CPU multiplies floats while it trains
    rtol = 1e-6 if kind == "nf4" else 1e-2  # they round to float16 before
    torch.testing.assert_close(QuantizedLinear(layer, kind)(x), theirs(x), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("shape", [(33, 35), (16, 24), (24, 16), (40, 96), (8, 128)])
def test_each_block_of_64_has_its_own_scale_whatever_the_length_of_rows(shape, monkeypatch):
    """Where rows end within a block, bitsandbytes 0.50 has wrong numbers on some CPUs; for odd ones it compiles."""
    monkeypatch.setattr(bitsandbytes.backends.default.ops, "_dequantize_4bit_compute", None)
    layer = nn.Linear(*reversed(shape))
    made = QuantizedLinear(layer, "nf4").weight(torch.float32)
    assert made.shape == shape
    blocks = (weight.detach().flatten().split(64) for weight in (made, layer.weight))
    for block, weights in zip(*blocks, strict=True):
        largest = weights.abs().max()
        assert (block - weights).abs().max() < 0.16 * largest, "half of the widest gap of the 16 values"
        torch.testing.assert_close(block[weights.abs().argmax()].abs(), largest)


@pytest.mark.parametrize(("kind", "num_bytes"), [("int8", 40 * 96 + 4 * 40), ("nf4", 40 * 96 // 2 + 4 * 40 * 96 // 64)])
def test_a_layer_takes_its_codes_and_scales_and_keeps_no_weight_for_the_backward_pass(kind, num_bytes):
    layer, kept = QuantizedLinear(nn.Linear(96, 40, bias=False), kind), []
    assert sum(parameter.nbytes for parameter in layer.parameters()) == num_bytes
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    x = torch.randn(3, 96, requires_grad=True)
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor):
        y = layer(x.relu())
    assert sum(kept) == 3 * 96 * 4, "what relu keeps"
    y.sum().backward()
    torch.testing.assert_close(x.grad, (x > 0) * layer.weight(torch.float32).sum(0))


def test_one_weight_at_a_time_is_in_full():
    made = adapted("llama", num_hidden_layers=6, intermediate_size=256).to("meta")
    batch = {name: value.to("meta") for name, value in tiny_batch("llama", batch_size=1).items()}
    peaks = []
    for model in (made, unpack_model(pack_quantized(made, "nf4"))):
        with live_memory(model.eval()) as memory:
            model(**batch, labels=torch.zeros(1, dtype=torch.long, device="meta")).loss.backward()
        peaks.append(memory.peak_bytes)
    frozen = 4 * sum(linear_weight(layer).numel() for layer in quantizable(made).values())
    largest = 4 * 256 * 16
    assert peaks[0] - peaks[1] > frozen * (1 - 4.5 / 32) - 3 * largest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "gpt2", "phi3"])
def test_changed_weights_arrive_as_if_the_changed_model_were_packed_anew(family, dtype, kind):
    model = adapted(family).to(dtype)
    place = unpack_model(pack_quantized(model, kind))
    ffn = find_ffns(model)[1]
    with torch.no_grad():
        for parameter in ffn.parameters():
            parameter.mul_(1.5)
    own = {id(parameter) for parameter in ffn.parameters()}
    changes = {name: as_array(p) for name, p in model.named_parameters() if id(p) in own}
    changed = quantize_changes(model, changes, kind)
    expected = pack_quantized(model, kind).weights
    for name, parameter in place.named_parameters():
        parameter.data = torch.from_numpy(changed[name]).view(parameter.dtype) if name in changed else parameter.data
        assert as_array(parameter).tobytes() == expected[name].tobytes(), name
    assert any(name.endswith(".codes") for name in changed)
    sizes = [sum(array.nbytes for array in arrays.values()) for arrays in (changed, changes)]
    assert sizes[0] < sizes[1]


def test_a_packed_model_travels_and_is_read_where_it_lies():
    model = adapted("bert")
    packed = cloudpickle.loads(cloudpickle.dumps(pack_quantized(model, "nf4")))
    for array in packed.weights.values():
        array.setflags(write=False)
    made = unpack_model(packed)
    codes = made.get_submodule(next(iter(quantizable(model)))).codes
    assert any(np.shares_memory(codes.numpy(), array) for array in packed.weights.values())
    assert torch.isfinite(step(made, "bert")[0]).all()
    assert packed.num_bytes < pack_model(model).num_bytes


def test_shared_and_unknown_layers_stay_as_they_are():
    model = adapted("llama")
    first, second = (ffn.layer.mlp for ffn in find_ffns(model)[:2])
    second.down_proj.weight = first.down_proj.weight
    first.up_proj.__class__ = type("Special", (nn.Linear,), {})
    names = quantizable(model)
    assert len(names) == len(quantizable(adapted("llama"))) - 3
    assert not [name for name in names if "layers.0.mlp.down_proj" in name or "layers.0.mlp.up_proj" in name]


def test_a_model_without_such_layers_is_refused():
    model = adapted("llama")
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = type("Special", (nn.Linear,), {})
    with pytest.raises(ConfigError, match=r"pool\.quantize: found a proxy without frozen linear layers"):
        pack_quantized(model, "nf4")


@pytest.fixture
def untried():
    """Forget what was imported and tried, before and after."""

    def forget():
        quantized_linear._library.cache_clear()
        check_quantizer.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.usefixtures("untried")
def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"^pool\.quantize: .*not installed.* pip install 'fedpft\[quantize\]'$"):
        check_quantizer("nf4")


@pytest.mark.usefixtures("untried")
def test_a_device_that_cannot_do_it_is_one_line(monkeypatch):
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", None)
    with pytest.raises(ConfigError, match=r"^pool\.quantize: found 'nf4', which bitsandbytes .* cannot do on cpu \(T"):
        check_quantizer("nf4")
    check_quantizer("int8")


def test_peft_does_not_import_bitsandbytes_for_us_and_finds_it_for_others(monkeypatch):
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    with lora._plain_layers():
        assert not lora.is_bnb_available()
        with pytest.raises(ImportError):
            importlib.import_module("bitsandbytes")
    assert "bitsandbytes" not in sys.modules
    assert lora.is_bnb_available()


def test_whoever_uses_bitsandbytes_goes_on_with_it():
    with without_bitsandbytes():
        assert sys.modules["bitsandbytes"] is bitsandbytes
    assert sys.modules["bitsandbytes"] is bitsandbytes
