import numpy as np
import pytest
import torch

from fedpft.models.activations import InactivityCounter, NeuronWatch, layer_outputs
from fedpft.models.ffn import find_ffns
from tests.tiny import ACTIVATIONS, FAMILIES, ONE_FAMILY_PER_ROW, TEXT_ROWS, tiny_batch, tiny_fm


def count(model, batches):
    with InactivityCounter(find_ffns(model)) as counter, torch.no_grad():
        for batch in batches:
            counter.set_mask(batch.get("attention_mask"))
            model(**batch)
    return counter.counts()


@pytest.mark.parametrize("model_type", TEXT_ROWS)
def test_padding_is_not_counted(model_type):
    fm, batch = tiny_fm(model_type), tiny_batch(model_type)
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths.min() < 7
    unpadded = [{"input_ids": ids[None, :length]} for ids, length in zip(batch["input_ids"], lengths, strict=True)]
    padded, alone = count(fm, [batch]), count(fm, unpadded)
    assert padded.positions.tolist() == alone.positions.tolist() == [int(lengths.sum())] * 3
    for ours, theirs in zip(padded.zeros, alone.zeros, strict=True):
        assert np.array_equal(ours, theirs)
        assert 0 < ours.sum() < ours.size * int(lengths.sum())


@pytest.mark.parametrize("model_type", ONE_FAMILY_PER_ROW)
def test_counts_are_integers_that_sum_over_batches(model_type):
    fm, batch = tiny_fm(model_type), tiny_batch(model_type)
    once, twice = count(fm, [batch]), count(fm, [batch, batch])
    assert twice.positions.tolist() == (2 * once.positions).tolist()
    for one, two in zip(once.zeros, twice.zeros, strict=True):
        assert one.dtype == two.dtype == np.int64
        assert np.array_equal(two, 2 * one)


def test_every_patch_of_an_image_counts():
    assert count(tiny_fm("vit"), [tiny_batch("vit")]).positions.tolist() == [4 * 5] * 3


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_inactive_means_not_positive_and_nearly_zero_when_gated(model_type):
    ffn = find_ffns(tiny_fm(model_type))[0]
    activations = torch.zeros(1, 7, 24)
    activations[0, :, 0] = torch.tensor([-1.0, -1e-3, -1e-4, 0.0, 1e-4, 1e-3, 1.0])
    activations[0, :, 1:] = 1.0
    with InactivityCounter([ffn]) as counter:
        ffn.down(activations)
    expected = 4 if ffn.gate is None else 5
    assert counter.counts().zeros[0].tolist() == [expected] + [0] * 23


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_neurons_are_read_after_activation_and_gate(model_type):
    fm, seen = tiny_fm(model_type), []
    ffn = find_ffns(fm)[1]
    watch = NeuronWatch([ffn], lambda position, activations: seen.append(activations))
    inputs = []
    hook = ffn.up.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        fm(**tiny_batch(model_type))
        act = ACTIVATIONS[model_type]
        up = ffn.up(inputs[0])
        if ffn.gate is ffn.up:
            gate, up = up.chunk(2, dim=-1)
            expected = act(gate) * up
        else:
            expected = act(up) if ffn.gate is None else act(ffn.gate(inputs[0])) * up
    hook.remove()
    watch.close()
    torch.testing.assert_close(seen[0], expected.flatten(0, -2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_layer_outputs_are_the_hidden_states(model_type):
    fm, batch = tiny_fm(model_type), tiny_batch(model_type)
    layers = [ffn.layer for ffn in find_ffns(fm)]
    with torch.no_grad(), layer_outputs(layers) as outputs:
        hidden = fm.base_model(**batch, output_hidden_states=True).hidden_states
    for layer in (0, 1):  # transformers applies the last norm to the last one
        assert torch.equal(outputs[layer], hidden[layer + 1])
    assert outputs[2].shape == hidden[3].shape


def test_hooks_are_gone_afterwards_also_after_an_error():
    fm = tiny_fm("bert")
    layers = [ffn.layer for ffn in find_ffns(fm)]
    count(fm, [tiny_batch("bert")])
    with pytest.raises(RuntimeError, match="mine"), InactivityCounter(find_ffns(fm)), layer_outputs(layers):
        raise RuntimeError("mine")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in fm.modules())


def test_watching_does_not_change_the_outputs():
    fm, batch = tiny_fm("bert"), tiny_batch("bert")
    with torch.no_grad():
        expected = fm(**batch).logits
        with InactivityCounter(find_ffns(fm)), layer_outputs([ffn.layer for ffn in find_ffns(fm)]):
            assert torch.equal(fm(**batch).logits, expected)
