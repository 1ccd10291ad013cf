import pytest
import torch

from fedpft.config import ConfigError
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import find_backbone, find_ffns
from fedpft.models.layerwise import check_layer_by_layer, record_calls, trace_ffn
from tests.tiny import (
    DEBERTA_V2_XLARGE,
    DINOV2_BASE,
    FAMILIES,
    IMAGE_FAMILIES,
    OPT_350M,
    TINY_CONFIGS,
    tiny_batch,
    tiny_fm,
)

SLIDING = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "use_sliding_window": True,
    "sliding_window": 2,
}
SEQUENTIAL = {"use_parallel_residual": False}
VARIANTS = [
    *((family, {}) for family in TINY_CONFIGS),
    *(("opt", OPT_350M), ("dinov2", DINOV2_BASE), ("gpt_neox", SEQUENTIAL), ("qwen2", SLIDING), ("qwen3", SLIDING)),
]


def own_outputs(model, batch):
    layers = [ffn.layer for ffn in find_ffns(model)]
    with torch.no_grad(), layer_outputs(layers) as outputs:
        find_backbone(model)(**batch)
    return [outputs[i] for i in range(len(layers))]


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_layers_run_one_by_one_give_the_models_own_hidden_states(model_type, overrides):
    model = tiny_fm(model_type, **overrides)
    batches = [tiny_batch(model_type, seed=seed, num_tokens=6 + seed) for seed in (1, 2, 3)]
    for batch, calls in zip(batches, record_calls(model, batches), strict=True):
        hidden = calls.hidden
        for ffn, expected in zip(find_ffns(model), own_outputs(model, batch), strict=True):
            hidden = calls.run(ffn.layer, ffn.index, hidden)
            real = calls.real
            torch.testing.assert_close(hidden[real], expected[real], rtol=1e-5, atol=1e-6)


def test_layers_that_attend_differently_are_told_apart():
    batch = tiny_batch("qwen2")
    plain, sliding = own_outputs(tiny_fm("qwen2"), batch), own_outputs(tiny_fm("qwen2", **SLIDING), batch)
    assert torch.equal(plain[0], sliding[0])
    assert not torch.allclose(plain[1], sliding[1])


def test_only_the_first_batch_runs_through_all_layers_when_they_are_called_alike():
    model = tiny_fm("bert")
    seen = []
    handle = find_ffns(model)[2].layer.register_forward_hook(lambda *_: seen.append(1))
    calls = record_calls(model, [tiny_batch("bert")] * 3)
    handle.remove()
    assert len(calls) == 3
    assert len(seen) == 1


@pytest.mark.parametrize("model_type", FAMILIES)
def test_padding_is_not_real(model_type):
    batch = tiny_batch(model_type)
    (calls,) = record_calls(tiny_fm(model_type), [batch])
    if model_type in IMAGE_FAMILIES:
        assert calls.real.all()
    else:
        assert torch.equal(calls.real, batch["attention_mask"].bool())


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_a_layers_output_is_the_closing_norm_of_residual_plus_down_of_the_activations(model_type, overrides):
    model = tiny_fm(model_type, **overrides)
    (calls,) = record_calls(model, [tiny_batch(model_type)])
    ffn = find_ffns(model)[0]
    with torch.no_grad(), trace_ffn(ffn) as trace:
        output = calls.run(ffn.layer, 0, calls.hidden)
        total = (trace.total - trace.output) + ffn.contribution(ffn.down(trace.activations))
        rebuilt = total if ffn.closing_norm is None else ffn.closing_norm(total)
    torch.testing.assert_close(rebuilt, output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_models_whose_layers_follow_each_other_pass(model_type, overrides):
    check_layer_by_layer(tiny_fm(model_type, **overrides), "align.layers.kind")


def test_a_model_with_work_between_its_layers_cannot_be_run_one_by_one():
    model = tiny_fm("deberta-v2", **DEBERTA_V2_XLARGE)
    with pytest.raises(ConfigError) as error:
        check_layer_by_layer(model, "align.layers.kind")
    found = "closed_form for a DebertaV2Model with encoder.conv between its layers"
    assert str(error.value) == f"align.layers.kind: found {found}, allowed: distill, none"
    with pytest.raises(AssertionError, match="work between layers"):
        record_calls(model, [tiny_batch("deberta-v2")])
