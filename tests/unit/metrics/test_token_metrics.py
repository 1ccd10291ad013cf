import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedpft.metrics import tokens as module_under_test
from fedpft.metrics.tokens import IGNORED, Perplexity, TokenAccuracy, TokenLoss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(9, 12, 20, generator=GENERATOR)
LABELS = torch.randint(0, 20, (9, 12), generator=GENERATOR)
LABELS[torch.arange(12) < torch.randint(1, 11, (9, 1), generator=GENERATOR)] = IGNORED


def of(metric, *batches):
    for logits, labels in batches:
        metric.update(logits, labels)
    return float(metric.compute())


def test_two_targets_by_hand():
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1.0, 1.0, 1.0]]])
    batch = (probabilities.log(), torch.tensor([[IGNORED, 1, 2]]))
    assert of(TokenLoss(), batch) == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)
    assert of(Perplexity(), batch) == pytest.approx((0.25 * 0.8) ** -0.5)
    assert of(TokenAccuracy(), batch) == 0.5


def test_the_loss_is_torchs_over_all_targets_at_once():
    expected = cross_entropy(LOGITS[:, :-1].flatten(0, 1).double(), LABELS[:, 1:].flatten(), ignore_index=IGNORED)
    assert of(TokenLoss(), (LOGITS, LABELS)) == pytest.approx(float(expected), rel=1e-6)
    assert of(Perplexity(), (LOGITS, LABELS)) == pytest.approx(math.exp(expected), rel=1e-6)


@pytest.mark.parametrize("metric", [TokenLoss, Perplexity, TokenAccuracy])
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_batches_make_no_difference_though_they_hold_different_numbers_of_targets(metric, size):
    batches = list(zip(LOGITS.split(size), LABELS.split(size), strict=True))
    assert len({int((labels != IGNORED).sum()) for _, labels in batches}) > (1 if size < 9 else 0)
    assert of(metric(), *batches) == pytest.approx(of(metric(), (LOGITS, LABELS)), rel=1e-12)


def test_the_first_token_is_no_target_even_if_it_has_a_label():
    labelled = LABELS.clone()
    labelled[:, 0] = 3
    assert of(TokenLoss(), (LOGITS, labelled)) == of(TokenLoss(), (LOGITS, LABELS))


def test_very_improbable_tokens_stay_finite():
    logits = torch.zeros(1, 2, 5)
    logits[0, 0, 1] = 400.0
    assert of(TokenLoss(), (logits, torch.tensor([[IGNORED, 0]]))) == pytest.approx(400.0)


def test_half_precision_logits_are_added_up_in_double():
    batch = (LOGITS.bfloat16(), LABELS)
    assert of(TokenLoss(), batch) == pytest.approx(of(TokenLoss(), (LOGITS.bfloat16().float(), LABELS)), rel=1e-12)


@pytest.mark.parametrize("metric", [TokenLoss, Perplexity, TokenAccuracy])
def test_chunks_bound_what_is_float32_at_a_time_and_change_no_bit(metric, monkeypatch):
    whole, shapes = of(metric(), (LOGITS, LABELS)), []
    monkeypatch.setattr(module_under_test, "CHUNK_NUMBERS", 3 * LOGITS.shape[-1])
    score = metric.score
    monkeypatch.setattr(metric, "score", lambda self, *chunk: shapes.append(chunk[0].shape) or score(self, *chunk))
    assert of(metric(), (LOGITS, LABELS)) == whole
    assert len(shapes) > 1
    assert max(rows for rows, _ in shapes) == 3


def test_a_batch_without_targets_adds_nothing():
    metric = TokenLoss()
    metric.update(LOGITS, torch.full_like(LABELS, IGNORED))
    metric.update(LOGITS, LABELS)
    assert float(metric.compute()) == of(TokenLoss(), (LOGITS, LABELS))
