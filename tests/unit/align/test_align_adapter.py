from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpft.align.adapter import align_adapter, output_loss
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import AdapterAlignConfig, LoraConfig, ServerConfig
from fedpft.construct.compress import compress
from fedpft.models.ffn import find_backbone
from fedpft.models.lora import adapter_parameters, attach_lora, get_adapter, set_adapter
from tests.tiny import tiny_batch, tiny_fm, tiny_lm

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode", "ignore:Converting a tensor")
SERVER = ServerConfig(accelerator="cpu")


def public_data(model_type, size=64):
    batch = tiny_batch(model_type, batch_size=size)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(size)]
    return PublicData(dataset=rows, collate=torch.utils.data.default_collate)


def tuned(model_type, make=tiny_fm):
    """Return FM, a sub-FM that says something else, and the FM's adapter."""
    fm = make(model_type)
    sub_fm, _ = compress(fm, retained_ratio=0.25, uncompressed_layers=())
    fm, sub_fm = attach_lora(fm, LoraConfig(rank=2), seed=0), attach_lora(sub_fm, LoraConfig(rank=2), seed=1)
    adapter = get_adapter(fm)
    rng = np.random.default_rng(0)
    adapter += rng.normal(scale=0.1, size=adapter.shape).astype(np.float32)
    set_adapter(fm, adapter)
    # at random weights FFNs hardly matter: the adapters differ, so that there is something to carry over
    set_adapter(sub_fm, adapter + rng.normal(scale=0.1, size=adapter.shape).astype(np.float32))
    return fm, sub_fm, adapter


def align(fm, sub_fm, public, seed=0, server=SERVER, **settings):
    config = AdapterAlignConfig(**({"num_steps": 30, "batch_size": 8, "lr": 2e-4} | settings))
    return align_adapter(fm, sub_fm, config, AlignmentContext(public=public, server=server, seed=seed))


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "distilbert", "gpt2", "llama", "vit"])
def test_the_fm_comes_nearer_to_the_tuned_proxy_and_only_its_adapter_changes(model_type):
    fm, sub_fm, adapter = tuned(model_type)
    adapter_names = set(adapter_parameters(fm))
    before = {name: tensor.clone() for name, tensor in fm.state_dict().items()}
    proxy_before = {name: tensor.clone() for name, tensor in sub_fm.state_dict().items()}
    flags = [parameter.requires_grad for parameter in fm.parameters()]
    public = public_data(model_type)
    report = align(fm, sub_fm, public)
    assert report.accepted
    assert report.distilled_loss < report.copied_loss
    batch = tiny_batch(model_type, batch_size=64)
    with torch.no_grad():
        found = output_loss(sub_fm, fm, batch)
        distilled = get_adapter(fm)
        set_adapter(fm, adapter)
        copied = output_loss(sub_fm, fm, batch)
    assert found < copied
    set_adapter(fm, distilled)
    changed = {name for name, tensor in fm.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= adapter_names
    assert changed
    assert all(torch.equal(tensor, proxy_before[name]) for name, tensor in sub_fm.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in fm.parameters()]


def test_the_loss_is_the_squared_error_of_logits_over_their_variance():
    fm, sub_fm, _ = tuned("bert")
    batch = tiny_batch("bert")
    with torch.no_grad():
        target, found = sub_fm(**batch).logits.double(), fm(**batch).logits.double()
        expected = ((found - target) ** 2).sum() / ((target - target.mean()) ** 2).sum()
        assert float(output_loss(sub_fm, fm, batch)) == pytest.approx(float(expected), rel=1e-5)


def test_a_language_models_loss_compares_what_its_head_reads_and_no_padding():
    fm, sub_fm, _ = tuned("llama", tiny_lm)
    batch = tiny_batch("llama")
    batch["attention_mask"][0, 4:] = 0
    with torch.no_grad():
        target, found = (find_backbone(m)(**{k: v for k, v in batch.items() if k != "labels"})[0] for m in (sub_fm, fm))
        real = batch["attention_mask"].bool()
        expected = (found[real] - target[real]).square().sum() / target[real].square().sum()
        assert float(output_loss(sub_fm, fm, batch)) == pytest.approx(float(expected), rel=1e-5)


def test_an_adapter_that_ends_farther_from_the_proxy_is_refused_and_the_copied_one_stays():
    fm, sub_fm, adapter = tuned("bert")
    report = align(fm, sub_fm, public_data("bert"), lr=0.1, num_steps=4)
    assert not report.accepted
    assert report.distilled_loss > report.copied_loss
    assert np.array_equal(get_adapter(fm), adapter)


def test_nan_is_refused():
    fm, sub_fm, adapter = tuned("bert")
    assert not align(fm, sub_fm, public_data("bert"), lr=1e30, num_steps=3, max_grad_norm=1e30).accepted
    assert np.array_equal(get_adapter(fm), adapter)


def test_equal_seeds_give_equal_bits_and_other_seeds_other_batches():
    results = []
    for seed in (0, 0, 1):
        fm, sub_fm, _ = tuned("bert")
        torch.manual_seed(len(results))  # global randomness plays no part
        align(fm, sub_fm, public_data("bert"), seed=seed, num_steps=3)
        results.append(get_adapter(fm))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_no_step_sees_the_examples_that_judge():
    fm, sub_fm, _ = tuned("bert")
    public, seen = public_data("bert", 16), []
    rows = [row | {"row": torch.tensor(index)} for index, row in enumerate(public.dataset)]

    def collate(batch):
        seen.append([int(row["row"]) for row in batch])
        return public.collate([{k: v for k, v in row.items() if k != "row"} for row in batch])

    align(fm, sub_fm, replace(public, dataset=rows, collate=collate), num_steps=10, held_out_examples=100, batch_size=4)
    held_out, *steps, again = seen
    trained = {row for batch in steps for row in batch}
    assert held_out == again, "before and after"
    assert len(held_out) == 4, "at most a quarter of 16, one batch"
    assert trained == set(range(16)) - set(held_out)


def test_in_bf16_the_adapter_reaches_the_loss_of_float32_within_1_per_cent():
    """Of a random language model; of a random classifier the two descents part at once, in either direction."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        fm, sub_fm, _ = tuned("llama", tiny_lm)
        server = replace(SERVER, precision=precision)
        report = align(fm, sub_fm, public_data("llama"), server=server, num_steps=60, lr=1e-3)
        losses.append(report.distilled_loss)
    assert losses[0] < 0.9 * report.copied_loss
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
