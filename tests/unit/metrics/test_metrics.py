import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as reference

from fedpft.metrics.table import DEFAULT_METRICS, METRICS, class_accuracy, class_counts, computed, is_better, metric_row

RNG = np.random.default_rng(0)
CLASSES = {"accuracy": reference.accuracy_score, "matthews": reference.matthews_corrcoef}
CLASSES |= {
    "f1": reference.f1_score,
    "macro_f1": lambda labels, found: reference.f1_score(labels, found, average="macro"),
}
NUMBERS = {"pearson": lambda labels, found: pearsonr(labels, found).statistic}
NUMBERS |= {"spearman": lambda labels, found: spearmanr(labels, found).statistic}
NUMBERS |= {"mse": reference.mean_squared_error, "mae": reference.mean_absolute_error}


def value(name, logits, labels, batch_size=7):
    row = METRICS[name]
    metric = row.make(logits.shape[1])
    for part, targets in zip(torch.split(logits, batch_size), torch.split(labels, batch_size), strict=True):
        metric.update(part, targets)
    return computed(metric, row)


def test_every_metric_is_compared_with_a_reference():
    kinds = {"classification": CLASSES, "regression": NUMBERS}
    for kind, references in kinds.items():
        assert {name for name, row in METRICS.items() if row.kind == kind} == references.keys()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_metrics_of_classes_are_scikit_learns(name, num_classes):
    if METRICS[name].num_classes not in (None, num_classes):
        return
    labels = RNG.integers(0, num_classes, 50)
    logits = RNG.normal(size=(50, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    expected = CLASSES[name](labels, logits.argmax(1))
    assert 0.1 < expected < 0.99
    assert value(name, torch.tensor(logits), torch.tensor(labels)) == pytest.approx(expected, abs=1e-5)


def test_f1_is_that_of_class_1():
    labels, found = [1, 1, 1, 0, 0], [1, 1, 0, 0, 1]  # 2 hits, 1 miss, 1 false alarm
    logits = torch.eye(2)[found]
    assert value("f1", logits, torch.tensor(labels)) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1), abs=1e-6)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (100.0, 1e-2)])
def test_metrics_of_numbers_are_scipys_and_scikit_learns(name, offset, spread):
    labels = RNG.integers(0, 26, 60) / 5  # with ties, as in STS-B
    logits = (offset + spread * (labels + RNG.normal(0, 1.5, 60)))[:, None].astype(np.float32)
    expected = NUMBERS[name](labels, logits[:, 0].astype(np.float64))
    assert value(name, torch.tensor(logits), torch.tensor(labels)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews"])
@pytest.mark.filterwarnings("error")
def test_a_constant_prediction_correlates_with_nothing(name):
    of_numbers = METRICS[name].kind == "regression"
    logits = torch.full((9, 1), 2.5) if of_numbers else torch.tensor([[1.0, 0.0]]).repeat(9, 1)
    labels = torch.arange(9.0) if of_numbers else torch.arange(9) % 2
    assert value(name, logits, labels) == 0.0


@pytest.mark.parametrize("name", NUMBERS)
def test_one_example_is_enough(name):
    assert math.isfinite(value(name, torch.tensor([[1.5]]), torch.tensor([2.0])))


def test_defaults_stand_in_the_table_and_a_set_does_not_change_the_row():
    for kind in ("classification", "regression"):
        assert all(METRICS[name].kind == kind for name in DEFAULT_METRICS[kind])
    assert metric_row("mismatched/accuracy") is METRICS["accuracy"]


@pytest.mark.parametrize(
    ("new", "old", "goal", "better"),
    [
        (2, 1, "max", True), (1, 2, "max", False), (1, 1, "max", False), (1, 2, "min", True), (2, 1, "min", False),
        (1, 1, "min", False), (math.nan, 1, "min", False), (math.nan, 1, "max", False), (1, math.nan, "min", True),
        (1, math.nan, "max", True), (math.nan, math.nan, "max", False),
    ],
)  # fmt: skip
def test_better_follows_the_goal_and_never_is_nan(new, old, goal, better):
    assert is_better(new, old, goal) == better


def test_titles_can_be_read_without_torch():
    code = "import sys, fedpft.metrics.table, fedpft.report.scores; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_accuracy_of_a_class_is_its_share_of_right_answers_and_none_without_examples():
    counts = class_counts(3)
    counts.update(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1]))
    counts.update(torch.eye(3)[[2, 1]], torch.tensor([1, 1]))
    assert class_accuracy(counts) == [1.0, 0.5, None]
