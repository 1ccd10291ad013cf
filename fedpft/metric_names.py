"""What the numbers of a round are called in Weights & Biases, and how it shows them."""

from collections.abc import Iterator, Mapping
from typing import Any

from fedpft.metrics import Goal

METRIC_NAMES = {
    "fm": "server/fm",
    "sub_fm": "server/sub_fm",
    "train_loss": "server/train_loss",
    "lr": "server/lr",
    "align/loss": "server/align_loss",
    "align/loss_before": "server/align_loss_before",
    "seconds": "time/round_seconds",
    "fidelity/total/hidden_error": "fidelity/hidden_error",
    "fidelity/total/gradient_cosine": "fidelity/gradient_cosine",
    "fidelity/total/gradient_norm_ratio": "fidelity/gradient_norm_ratio",
}
"""Key of a round record -> name in W&B. Other keys keep their section (`comm/bytes_up`) or go to `server/`."""

WANDB_METRICS = (
    ("server/*", "round", None),
    ("server/train_loss", "round", "min"),
    ("metrics/*", "round", None),
    ("clients/*", "round", None),
    ("comm/*", "round", None),
    ("time/*", "round", None),
    ("memory/*", "round", None),
    ("fidelity/*", "round", None),
    ("fidelity/hidden_error", "round", "min"),
    ("fidelity/gradient_cosine", "round", "max"),
    ("align/*", "align/step", None),
)
"""Name in W&B, the metric on its x axis, and what the run's summary keeps (None: the last value)."""


def wandb_definitions(goal: Goal) -> tuple[tuple[str, str, str | None], ...]:
    """Return `WANDB_METRICS`, and the task's primary metric, whose summary keeps what is best."""
    return (*WANDB_METRICS, ("server/fm", "round", goal), ("server/sub_fm", "round", goal))


def wandb_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a round record, nested sections and their lists flattened, under their W&B names."""
    return {
        METRIC_NAMES.get(key, key if "/" in key else f"server/{key}"): float(value)
        for key, value in _flat(record)
        if key != "round" and isinstance(value, int | float)
    }


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `a/b/c` and value of nested sections; a list inside a section has one number a layer: `a/b/layer_00`."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif prefix and isinstance(value, list | tuple):
            yield from ((f"{prefix}{name}/layer_{layer:02}", number) for layer, number in enumerate(value))
        else:
            yield prefix + name, value
