import datasets
import numpy as np
import pytest
import torch

from fedpft.data.collate import CausalCollator
from fedpft.evaluation.example_losses import example_losses, losses_of
from fedpft.metrics import tokens
from fedpft.metrics.tokens import IGNORED
from fedpft.models.live_memory import live_memory
from fedpft.privacy.membership import attack
from tests.tiny import tiny_fm, tiny_lm, tiny_texts
from tests.unit.evaluation.test_evaluate import DATASET, SERVER, TOKENIZER, TextCollator, model


def test_each_examples_loss_is_the_models_own_of_that_example_alone():
    of, chosen = model(), [4, 0, 17, 9]
    found = example_losses(
        of, DATASET, chosen, TextCollator(TOKENIZER), kind="classification", batch_size=3, server=SERVER
    )
    with torch.no_grad():
        alone = [of(**TextCollator(TOKENIZER)([DATASET[row]])).loss.item() for row in chosen]
    assert found == pytest.approx(np.array(alone), rel=1e-5)


def test_of_no_examples_there_are_no_losses():
    found = example_losses(
        model(), DATASET, [], TextCollator(TOKENIZER), kind="classification", batch_size=3, server=SERVER
    )
    assert found.shape == (0,)


def test_a_language_models_loss_of_an_example_is_its_target_tokens_mean():
    lm = tiny_lm("llama")
    ids = torch.randint(3, 40, (3, 8), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :5], labels[1, :2] = IGNORED, IGNORED
    with torch.no_grad():
        found = losses_of(lm, {"input_ids": ids}, labels, "causal_lm")
        alone = [lm(input_ids=ids[[row]], labels=labels[[row]]).loss.item() for row in range(3)]
    assert found.tolist() == pytest.approx(alone, rel=1e-4)


def test_a_language_models_losses_take_no_more_memory_for_the_logits_of_more_texts(monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_NUMBERS", 16 * 4096)
    lm, peaks = tiny_lm("llama", vocab_size=4096).to("meta"), []
    texts = datasets.Dataset.from_list([{"input_ids": [3] * 32, "prompt_length": 1}] * 16)
    for batch_size in (8, 16):
        with live_memory(lm) as memory:
            example_losses(
                lm, texts, range(16), CausalCollator(2), kind="causal_lm", batch_size=batch_size, server=SERVER
            )
        peaks.append(memory.peak_bytes)
    assert peaks[1] - peaks[0] < 4 * 32 * 4096, "one text's logits"


def test_a_regressions_loss_is_the_squared_error():
    fm = tiny_fm("bert", num_labels=1, problem_type="regression")
    ids, labels = torch.randint(3, 40, (2, 6)), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        assert losses_of(fm, {"input_ids": ids}, labels, "regression").mean().item() == pytest.approx(
            fm(input_ids=ids, labels=labels).loss.item(), rel=1e-5
        )


def test_examples_that_a_model_knows_by_heart_are_told_from_others_by_their_losses():
    texts, _ = tiny_texts(80)
    labels = np.random.default_rng(7).integers(0, 2, len(texts))  # nothing to learn but by heart
    dataset = datasets.Dataset.from_dict({"input_ids": TOKENIZER(texts)["input_ids"], "label": labels})
    reference, tuned = (tiny_fm("bert", num_labels=2) for _ in range(2))
    optimiser, collate = torch.optim.Adam(tuned.parameters(), lr=3e-3), TextCollator(TOKENIZER)
    members, others = np.arange(40), np.arange(40, 80)
    for _ in range(100):
        tuned(**collate([dataset[int(row)] for row in members])).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    def losses(of, rows):
        return example_losses(of, dataset, rows, collate, kind="classification", batch_size=40, server=SERVER)

    found = attack(*(losses(reference, rows) - losses(tuned, rows) for rows in (members, others)))
    assert found.auc > 0.5 + 3 * found.auc_error
