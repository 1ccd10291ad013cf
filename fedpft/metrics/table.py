"""The table of metrics: for which tasks, which way is better, how a value is shown, and who computes it."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the screen reads titles and goals before torch is loaded
    from torch import Tensor
    from torchmetrics import Metric

TaskKind = Literal["classification", "regression", "causal_lm"]
"""What labels are: one of some classes, a number, or the text's own next tokens."""

Goal = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """What must be known of a metric."""

    title: str
    kind: TaskKind
    """Tasks that have it."""
    make: Callable[[int], "Metric"]
    """Number of the model's outputs -> a fresh torchmetrics object that is updated with logits and labels."""
    goal: Goal = "max"
    is_fraction: bool = False
    """A share in [0, 1], shown as per cent."""
    num_classes: int | None = None
    """Defined for this number of classes only."""
    undefined: float = math.nan
    """Value where there is none, e.g. of the correlation with a constant."""


def _torchmetrics() -> Any:
    import torchmetrics  # with the first evaluation

    # it tells of every constant prediction, for which the table has a value, and of every buffer
    warnings.filterwarnings("ignore", module=r"torchmetrics\.")
    return torchmetrics


def _tokens() -> Any:
    from fedpft.metrics import tokens  # with the first evaluation

    return tokens


def _of_classes(metric: "Metric") -> "Metric":
    """Return a metric of predicted classes as one of logits, (B, classes)."""
    return _torchmetrics().wrappers.LambdaInputTransformer(metric, transform_pred=lambda logits: logits.argmax(-1))


def _of_numbers(metric: "Metric") -> "Metric":
    """Return a metric of predicted numbers as one of logits, (B, 1); in float64, for predictions that differ little."""

    def numbers(values: "Tensor") -> "Tensor":
        return values.reshape(-1).double()

    return _torchmetrics().wrappers.LambdaInputTransformer(metric, transform_pred=numbers, transform_target=numbers)


METRICS: dict[str, MetricRow] = {
    "accuracy": MetricRow(
        title="accuracy", kind="classification", is_fraction=True,
        make=lambda n: _torchmetrics().classification.MulticlassAccuracy(n, average="micro"),
    ),
    "f1": MetricRow(
        title="F1", kind="classification", is_fraction=True, num_classes=2,
        make=lambda n: _of_classes(_torchmetrics().classification.BinaryF1Score()),
    ),
    "macro_f1": MetricRow(
        title="macro F1", kind="classification", is_fraction=True,
        make=lambda n: _torchmetrics().classification.MulticlassF1Score(n, average="macro"),
    ),
    "matthews": MetricRow(
        title="Matthews corr.", kind="classification",
        # of two classes, torchmetrics extrapolates where a prediction is constant; GLUE has 0 there, and so has
        # the formula for more classes, which one that never occurs does not change
        make=lambda n: _of_classes(_torchmetrics().classification.MulticlassMatthewsCorrCoef(max(n, 3))),
    ),
    "pearson": MetricRow(
        title="Pearson r", kind="regression", undefined=0.0,
        make=lambda n: _of_numbers(_torchmetrics().PearsonCorrCoef()),
    ),
    "spearman": MetricRow(
        title="Spearman rho", kind="regression", undefined=0.0,
        make=lambda n: _of_numbers(_torchmetrics().SpearmanCorrCoef()),
    ),
    "mse": MetricRow(
        title="MSE", kind="regression", goal="min",
        make=lambda n: _of_numbers(_torchmetrics().MeanSquaredError()),
    ),
    "mae": MetricRow(
        title="MAE", kind="regression", goal="min",
        make=lambda n: _of_numbers(_torchmetrics().MeanAbsoluteError()),
    ),
    "loss": MetricRow(
        title="loss", kind="causal_lm", goal="min", make=lambda n: _tokens().TokenLoss(),
    ),
    "perplexity": MetricRow(
        title="perplexity", kind="causal_lm", goal="min", make=lambda n: _tokens().Perplexity(),
    ),
    "token_accuracy": MetricRow(
        title="token accuracy", kind="causal_lm", is_fraction=True, make=lambda n: _tokens().TokenAccuracy(),
    ),
}  # fmt: skip
"""By the name that `task.metrics`, `rounds.jsonl` and `result.json` use; `f1` is that of class 1."""

DEFAULT_METRICS: Mapping[TaskKind, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "causal_lm": ("loss", "perplexity", "token_accuracy"),
}
"""Of a task that names none; the first is the primary one."""


def class_counts(num_classes: int) -> "Metric":
    """Return a metric of logits and labels, for :func:`class_accuracy`."""
    return _torchmetrics().classification.MulticlassStatScores(num_classes, average="none")


def class_accuracy(counts: "Metric") -> list[float | None]:
    """Return the share of each class that was predicted as itself, to 6 decimals; None for one without examples."""
    columns = counts.compute()  # (classes, 5): true and false positives, true and false negatives, examples
    return [round(right / total, 6) if total else None for right, *_, total in columns.tolist()]


def metric_row(name: str) -> MetricRow:
    """Return the row of a metric, also of one on another evaluation set, e.g. `mismatched/accuracy`."""
    return METRICS[name.rpartition("/")[2]]


def computed(metric: "Metric", row: MetricRow) -> float:
    """Return what an updated metric has computed, to 6 decimals (torchmetrics divides in float32)."""
    value = float(metric.compute())
    return row.undefined if math.isnan(value) else round(value, 6)


def is_better(value: float, other: float, goal: Goal) -> bool:
    """Whether a value beats another one; NaN beats nothing and is beaten by every number."""
    if math.isnan(other):
        return not math.isnan(value)
    return value > other if goal == "max" else value < other
