"""What a round's numbers are called in every tracker, on which axis they lie, and what a summary keeps of them."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from statistics import fmean
from typing import Any, Literal

from fedpft.metrics.table import Goal, metric_row

ROUND = "round"
"""The axis of all but the alignments' steps."""

CLIENT_COLUMNS = ("client_id", "num_examples", "loss", "seconds", "actor")
"""Of the table of clients."""

METRIC_NAMES = {
    "fm": "server/fm",
    "fm_copied": "server/fm_copied",
    "sub_fm": "server/sub_fm",
    "train_loss": "server/train_loss",
    "lr": "server/lr",
    "align/loss": "server/align_loss",
    "align/loss_before": "server/align_loss_before",
    "align/measured_loss": "server/align_measured_loss",
    "align/measured_loss_before": "server/align_measured_loss_before",
    "seconds": "time/round_seconds",
    "fidelity/total/hidden_error": "fidelity/hidden_error",
    "fidelity/total/gradient_cosine": "fidelity/gradient_cosine",
    "fidelity/total/gradient_norm_ratio": "fidelity/gradient_norm_ratio",
}
"""Key of a round record -> its name. Other keys keep their section (`comm/bytes_up`) or go to `server/`."""

STEP_METRICS = {
    **dict.fromkeys(
        ("server/*", "metrics/*", "clients/*", "client_accuracy/*", "comm/*", "time/*", "memory/*", "fidelity/*",
         "plug_in/*", "lora/*", "privacy/*"), "round"
    ),
    "align/*": "align/step",
}  # fmt: skip
"""Names -> the metric on their x axis."""

Kept = Literal["max", "min", "mean"]
"""W&B's word for what a summary keeps of a metric's values."""

_KEPT: Mapping[str, Kept] = {
    "server/train_loss": "min",
    "server/align_*loss*": "min",
    "align/step_loss": "min",
    "clients/loss_*": "min",
    "client_accuracy/variance": "min",
    "client_accuracy/m*": "max",
    "client_accuracy/worst_decile": "max",
    "fidelity/hidden_error*": "min",
    "plug_in/*_loss": "min",
    "fidelity/gradient_cosine*": "max",
    "clients/flops*": "mean",
    "lora/product_error": "max",
    "comm/bytes_*": "mean",
    "time/*_seconds": "mean",
    "clients/*_bytes_max": "max",
    "memory/*_bytes": "max",
}
"""What is spent in every round has a mean, memory its peak; else what is best. `result/*` has the run's totals."""


def kept_in_summary(name: str, goal: Goal) -> Kept | None:
    """Return what a run's summary keeps of a metric; None: its last value, because neither way is better.

    Args:
        name: as logged.
        goal: of the task's primary metric.

    """
    if name in ("server/fm", "server/fm_copied", "server/sub_fm"):
        return goal
    if name.startswith("metrics/"):
        return metric_row(name).goal
    return next((kept for pattern, kept in _KEPT.items() if fnmatch(name, pattern)), None)


def logged_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a round record, nested sections and their lists flattened, under their names."""
    return {
        METRIC_NAMES.get(key, key if "/" in key else f"server/{key}"): float(value)
        for key, value in _flat(record)
        if key != "round" and isinstance(value, int | float)
    }


def loss_spread(losses: Sequence[float]) -> dict[str, float]:
    """Return `clients/loss_mean`, `_min`, `_max` of a round's clients; nothing without clients."""
    if not losses:
        return {}
    return {f"clients/loss_{name}": float(of(losses)) for name, of in (("mean", fmean), ("min", min), ("max", max))}


def result_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the plain numbers of `result.json` as `result/*`."""
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return {f"result/{key}": float(value) for key, value in numbers.items()}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `a/b/c` and value of nested sections; a list inside a section has one number a layer: `a/b/layer_00`."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif prefix and isinstance(value, list | tuple):
            yield from ((f"{prefix}{name}/layer_{layer:02}", number) for layer, number in enumerate(value))
        else:
            yield prefix + name, value
