"""Metrics in words, each in its own unit: for the screen's lines, the final table and the page."""

from collections.abc import Iterator, Mapping
from typing import Any

from fedpft.metrics import metric_row

MODELS = {"untuned_fm": "untuned FM", "sub_fm": "sub-FM", "fm": "plugged-in FM"}
"""Key in `result.json` -> what people read."""


def metric_title(name: str) -> str:
    """Return what a metric is called, e.g. `accuracy`, and on another evaluation set `mismatched accuracy`."""
    return " ".join([*name.split("/")[:-1], metric_row(name).title])


def metric_value(value: float, name: str) -> str:
    """Return a metric's value in its unit, e.g. `71.2 %`, `0.864`."""
    return f"{100 * value:.1f} %" if metric_row(name).is_fraction else f"{value:.3f}"


def metric_change(difference: float, name: str) -> str:
    """Return a difference of two values of a metric, e.g. `+3.1 points`, `-0.020`."""
    return f"{100 * difference:+.1f} points" if metric_row(name).is_fraction else f"{difference:+.3f}"


def round_scores(record: Mapping[str, Any]) -> list[str]:
    """Return the primary metric of both models in a round's line, e.g. `fm 71.2 %`; nothing if it was not evaluated."""
    titles = {"fm": "fm", "sub_fm": "sub-fm"} if "fm" in record else {}
    return [f"{title} {metric_value(record[key], record['metric'])}" for key, title in titles.items()]


def score_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of each row in the final table: one a model for the primary metric.

    Any other metric has one row, the plugged-in FM's, with the other models in its note.
    """
    metric = result["metric"]
    for key, model in MODELS.items():
        note = "" if key == "untuned_fm" else metric_change(result[key] - result["untuned_fm"], metric)
        yield f"{metric_title(metric)}, {model}", metric_value(result[key], metric), note
    for name in result["metrics"]["fm"]:
        if name != metric:
            untuned, sub_fm, fm = (metric_value(result["metrics"][key][name], name) for key in MODELS)
            yield metric_title(name), fm, f"sub-FM {sub_fm}, untuned {untuned}"
