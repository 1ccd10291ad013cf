"""A language model's logits at targets alone are those of the whole batch, in less memory."""

import pytest
import torch

from fedpft.config import LoraConfig
from fedpft.metrics import tokens
from fedpft.metrics.tokens import IGNORED, predictions
from fedpft.models.live_memory import live_memory
from fedpft.models.lora import attach_lora
from fedpft.models.target_logits import target_logits
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
