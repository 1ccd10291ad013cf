import datasets
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from fedpft.config import LoraConfig, ServerConfig
from fedpft.data.collate import TextCollator
from fedpft.evaluation.evaluate import evaluate
from fedpft.models.lora import attach_lora
from tests.tiny import tiny_fm, tiny_texts, tiny_tokenizer

SERVER = ServerConfig(accelerator="cpu")
TOKENIZER = tiny_tokenizer()
TEXTS, LABELS = tiny_texts(23)
DATASET = datasets.Dataset.from_dict({"input_ids": TOKENIZER(TEXTS)["input_ids"], "label": LABELS})


def model():
    return attach_lora(tiny_fm("bert", num_labels=2, seed=3), LoraConfig(rank=2), seed=0).eval()


def scores(of, dataset=DATASET, **kwargs):
    defaults = {"metrics": ["accuracy"], "batch_size": 4, "server": SERVER}
    return evaluate(of, dataset, TextCollator(TOKENIZER), **(defaults | kwargs))


def score(of, **kwargs):
    return scores(of, **kwargs)["accuracy"]


@torch.no_grad()
def brute_force(of):
    ids = [TOKENIZER(text)["input_ids"] for text in TEXTS]
    return sum(
        int(of(input_ids=torch.tensor([i])).logits.argmax()) == label for i, label in zip(ids, LABELS, strict=True)
    )


def test_accuracy_is_the_fraction_of_right_answers_over_every_example():
    of = model()
    right = brute_force(of)
    assert 0 < right < 23
    assert score(of) == pytest.approx(right / 23)


def test_all_metrics_come_from_one_pass_in_the_order_asked_for():
    steps, of = [], model()
    found = scores(of, metrics=["f1", "accuracy"], batch_size=23, on_step=lambda *step: steps.append(step))
    assert list(found) == ["f1", "accuracy"]
    assert found["accuracy"] == score(of)
    assert len(steps) == 1


@torch.no_grad()
def test_a_model_of_one_output_is_scored_by_its_numbers():
    of = attach_lora(tiny_fm("bert", num_labels=1, problem_type="regression"), LoraConfig(rank=2), seed=0).eval()
    numbers = np.random.default_rng(0).normal(2.5, 1, len(TEXTS)).astype(np.float32)
    dataset = DATASET.remove_columns("label").add_column("label", numbers)
    found = scores(of, dataset, metrics=["pearson", "spearman", "mse"])
    outputs = [of(input_ids=torch.tensor([ids])).logits.item() for ids in DATASET["input_ids"]]
    assert found == pytest.approx(
        {
            "pearson": pearsonr(outputs, numbers).statistic,
            "spearman": spearmanr(outputs, numbers).statistic,
            "mse": np.mean((outputs - numbers) ** 2),
        },
        abs=1e-5,
    )


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_batch_size_does_not_change_the_accuracy(batch_size):
    of = model()
    assert score(of, batch_size=batch_size) == score(of)


def test_dropout_is_off_and_modes_and_weights_come_back():
    of = model()
    expected = score(of)
    of.train()
    next(of.children()).eval()
    modes = [module.training for module in of.modules()]
    weights = {name: tensor.clone() for name, tensor in of.state_dict().items()}
    assert [score(of) for _ in range(3)] == [expected] * 3
    assert [module.training for module in of.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in of.state_dict().items())
    assert all(parameter.grad is None for parameter in of.parameters())


def test_random_state_is_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    score(model().train(), batch_size=3)
    torch.manual_seed(0)
    model()
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_are_reported_in_examples():
    steps = []
    score(model(), batch_size=10, on_step=lambda done, total, metrics: steps.append((done, total)))
    assert steps == [(10, 23), (20, 23), (23, 23)]
