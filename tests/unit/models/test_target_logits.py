"""A language model's logits at targets alone are those of the whole batch, in less memory."""

import pytest
import torch

from fedpft.config import LoraConfig
from fedpft.metrics import tokens
from fedpft.metrics.tokens import IGNORED, find_targets, predictions
from fedpft.models.live_memory import live_memory
from fedpft.models.lora import adapter_parameters, attach_lora
from fedpft.models.target_logits import target_logits, target_losses
from tests.tiny import OPT_350M, tiny_batch, tiny_lm
from tests.unit.models.test_causal_models import TINY_DECODERS


def with_labels(model_type):
    batch = tiny_batch(model_type)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    labels[0, :4] = IGNORED
    return batch, labels


VARIANTS = [
    ("opt", OPT_350M),
    ("gemma2", {"final_logit_softcapping": 0.5}),
    ("gemma3_text", {"final_logit_softcapping": 0.5}),
]


@torch.no_grad()
@pytest.mark.parametrize(("model_type", "fields"), [*((family, {}) for family in TINY_DECODERS), *VARIANTS])
def test_every_decoders_are_those_of_the_whole_batch(model_type, fields, monkeypatch):
    model = attach_lora(tiny_lm(model_type, **fields), LoraConfig(rank=2), seed=0).double().eval()
    batch, labels = with_labels(model_type)
    whole = model(**batch).logits
    monkeypatch.setattr(tokens, "CHUNK_NUMBERS", 3 * 40)
    expected, found = list(predictions(whole, labels)), list(target_logits(model, batch, labels))
    assert len(found) == len(expected) > 2
    for (logits, targets), (wanted, ids) in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, wanted, rtol=1e-6, atol=1e-6)
        assert torch.equal(targets, ids)
    assert torch.equal(model(**batch).logits, whole), "it works as before"


@torch.no_grad()
def test_more_tokens_take_no_more_logits(monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_NUMBERS", 64 * 4096)
    model, peaks = tiny_lm("llama", vocab_size=4096).to("meta"), []
    for num_texts in (8, 16):
        ids = torch.ones(num_texts, 32, dtype=torch.int64)
        with live_memory(model) as memory:
            moved = ids.to("cpu")
            for _ in target_logits(model, {"input_ids": moved}, moved):
                pass
        peaks.append(memory.peak_bytes)
    one_texts_logits = 4 * 32 * 4096
    assert peaks[1] - peaks[0] < one_texts_logits, "eight texts more"


def gradients(model, loss):
    return torch.autograd.grad(loss, list(adapter_parameters(model).values()))


@pytest.mark.parametrize(("model_type", "fields"), [*((family, {}) for family in TINY_DECODERS), *VARIANTS])
def test_every_decoders_loss_and_gradients_are_those_of_the_model_itself(model_type, fields, monkeypatch):
    model = attach_lora(tiny_lm(model_type, **fields), LoraConfig(rank=2), seed=0).double().eval()
    batch, labels = with_labels(model_type)
    expected = model(**batch, labels=labels).loss
    monkeypatch.setattr(tokens, "CHUNK_NUMBERS", 3 * 40)
    (found,) = target_losses(model, batch, [find_targets(labels)])
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(gradients(model, 3 * found), gradients(model, 3 * expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


def test_of_a_batch_in_parts_each_loss_is_that_of_the_part_alone_and_without_a_target_none():
    model = attach_lora(tiny_lm("llama"), LoraConfig(rank=2), seed=0).double().eval()
    batch, labels = with_labels("llama")
    labels[1] = IGNORED
    parts = [find_targets(part) for part in labels.split(1)]
    losses = target_losses(model, batch, parts)
    for row, loss in enumerate(losses.tolist()):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        (expected,) = target_losses(model, alone, parts[row : row + 1])
        assert loss == pytest.approx(expected.item(), rel=1e-9, nan_ok=True)
    assert losses.isnan().tolist() == [row == 1 for row in range(len(labels))]


def test_lora_on_the_head_is_trained_too():
    lora = LoraConfig(rank=2, target_modules=("q_proj", "lm_head"))
    model = attach_lora(tiny_lm("llama", tie_word_embeddings=False), lora, seed=0).double().eval()
    batch, labels = with_labels("llama")
    (found,) = target_losses(model, batch, [find_targets(labels)])
    expected = gradients(model, model(**batch, labels=labels).loss)
    assert sum("lm_head" in name for name in adapter_parameters(model)) == 2
    for one, other in zip(gradients(model, found), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


def test_the_head_reads_targets_alone_and_few_at_a_time(monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_NUMBERS", 4 * 40)
    model = attach_lora(tiny_lm("llama"), LoraConfig(rank=2), seed=0)
    batch, labels = with_labels("llama")
    targets, read = find_targets(labels), []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0].shape[-2]))
    target_losses(model, batch, [targets])[0].backward()
    assert max(read) <= tokens.targets_at_once(40) == 4
    assert sum(read) == targets.shape[1] < labels.numel()
