"""Alignments under mixed precision: what they end with is measured in float32, by whole forward passes."""

import pytest
import torch

from fedpft.align.closed_form import refit_layers, refit_neurons
from fedpft.align.distill import align_emulator, align_layers, align_neurons
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import LayerAlignConfig, NeuronAlignConfig, ServerConfig
from fedpft.construct.compress import compress
from fedpft.construct.layer_drop import choose_layers, drop_layers
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import find_backbone, find_ffns
from tests.tiny import tiny_batch, tiny_fm

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode")
LAYERS, MASKS = (1, 2), {1: torch.arange(12) % 2 == 0, 2: torch.arange(12) < 6}
STEPS = {"num_steps": 12, "batch_size": 8, "lr": 1e-2, "num_examples": 64}


def last_hidden_error(fm, proxy, batch):
    outputs = []
    for model in (fm, proxy):
        with torch.no_grad(), layer_outputs([find_ffns(model)[-1].layer]) as found:
            find_backbone(model)(**batch)
        outputs.append(found[0][batch["attention_mask"].bool() if "attention_mask" in batch else ...])
    return float((outputs[0] - outputs[1]).square().mean() / outputs[0].square().mean())


def aligned(model_type, align, precision):
    """Return the last hidden state's error before and after, on the examples that the alignment read."""
    fm = tiny_fm(model_type)
    batch = tiny_batch(model_type, batch_size=64, num_tokens=9)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(64)]
    public = PublicData(dataset=rows, collate=torch.utils.data.default_collate)
    context = AlignmentContext(public=public, server=ServerConfig(accelerator="cpu", precision=precision), seed=0)
    if align is align_emulator:
        layer_map = choose_layers(3, adapter_layers=1, kept_layers=3)
        proxy = drop_layers(fm, layer_map)
        with torch.no_grad():
            for parameter in find_ffns(proxy)[1].parameters():
                parameter.mul_(0.5)
        which = {"layers": layer_map.emulator, "target": layer_map.end_of_middle}
    else:
        proxy, _ = compress(fm, retained_ratio=0.5, uncompressed_layers=(0,))
        chosen = align in (align_neurons, refit_neurons)
        which = {"neuron_masks": MASKS} if chosen else {"layers": LAYERS}
    kind = "closed_form" if align in (refit_layers, refit_neurons) else "distill"
    config = NeuronAlignConfig if "neuron_masks" in which else LayerAlignConfig
    before = last_hidden_error(fm, proxy, batch)
    report = align(fm, proxy, config(kind=kind, **STEPS), context, **which)
    return before, last_hidden_error(fm, proxy, batch), report


@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize("align", [refit_layers, refit_neurons, align_layers, align_neurons, align_emulator])
def test_in_bf16_an_alignment_reaches_the_loss_of_float32_within_1_per_cent(model_type, align):
    before, full, full_report = aligned(model_type, align, "32-true")
    _, mixed, mixed_report = aligned(model_type, align, "bf16-mixed")
    assert full < 0.95 * before
    assert mixed == pytest.approx(full, rel=1e-2)
    assert mixed_report.measured_after == pytest.approx(full_report.measured_after, rel=1e-2)
    assert full_report.measured_after < full_report.measured_before


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_refit_takes_no_notice_of_mixed_precision(precision):
    assert aligned("bert", refit_layers, precision) == aligned("bert", refit_layers, "32-true")
