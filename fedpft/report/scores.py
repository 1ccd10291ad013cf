"""Metrics in words, each in its own unit: for the screen's lines, the final table and the page."""

from collections.abc import Iterator, Mapping
from typing import Any

from fedpft.metrics.table import metric_row

MODELS = {"untuned_fm": "untuned FM", "sub_fm": "sub-FM", "fm_copied": "FM, adapter copied", "fm": "plugged-in FM"}
"""Key in `result.json` -> what people read."""
CURVES = {"fm": "FM", "sub_fm": "sub-FM"}
"""Key in a round's record -> the curve's name."""


def shown_models(titles: Mapping[str, str], result: Mapping[str, Any]) -> dict[str, str]:
    """Return the titles by model of those that a run has: no sub-FM if clients tuned the FM itself, and so on."""
    missing = {"sub_fm"} if result["method"] == "full" else set()
    if "fm_copied" not in result:
        missing.add("fm_copied")
    return {key: title for key, title in titles.items() if key not in missing}


def metric_title(name: str) -> str:
    """Return what a metric is called, e.g. `accuracy`, and on another evaluation set `mismatched accuracy`."""
    return " ".join([*name.split("/")[:-1], metric_row(name).title])


def metric_value(value: float, name: str) -> str:
    """Return a metric's value in its unit, e.g. `71.2 %`, `0.864`."""
    return f"{100 * value:.1f} %" if metric_row(name).is_fraction else f"{value:.3f}"


def metric_change(difference: float, name: str) -> str:
    """Return a difference of two values of a metric, e.g. `+3.1 points`, `-0.020`."""
    return f"{100 * difference:+.1f} points" if metric_row(name).is_fraction else f"{difference:+.3f}"


def metric_range(low: float, high: float, name: str) -> str:
    """Return the ends of an interval of a metric, without the unit, e.g. `1.2 to 5.0`."""
    return f"{100 * low:.1f} to {100 * high:.1f}" if metric_row(name).is_fraction else f"{low:.3f} to {high:.3f}"


def round_scores(record: Mapping[str, Any]) -> list[str]:
    """Return the primary metric of both models in a round's line, e.g. `fm 71.2 %`; nothing if it was not evaluated."""
    return [
        f"{name.lower()} {metric_value(record[key], record['metric'])}" for key, name in CURVES.items() if key in record
    ]


def why_stopped(result: Mapping[str, Any]) -> str:
    """Return why a run ended before its last round; empty if it did not."""
    stopped = result.get("stopped")
    if not stopped:
        return ""
    if stopped["reason"] == "privacy":
        return stopped["why"]
    metric, title = stopped["metric"], metric_title(stopped["metric"])
    if stopped["reason"] == "target":
        return f"{title} has reached its target {metric_value(stopped['target'], metric)}"
    best = f"{metric_value(stopped['best'], metric)} of round {stopped['round']}"
    by = f" by more than {stopped['min_delta']:g}" if stopped["min_delta"] else ""
    return f"{title} did not beat {best}{by} in {stopped['num_worse']} evaluation(s)"


def attack_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of a backdoor's row; none for a run without one."""
    if "attack_success" in result:
        about = "of other classes, once they have the trigger, are taken for the target"
        yield "attack success", metric_value(result["attack_success"], "accuracy"), about


def score_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and note of each row in the final table: one a model for the primary metric.

    Any other metric has one row, the plugged-in FM's, with the other models in its note.
    """
    metric, models = result["metric"], shown_models(MODELS, result)
    for key, model in models.items():
        note = "" if key == "untuned_fm" else metric_change(result[key] - result["untuned_fm"], metric)
        yield f"{metric_title(metric)}, {model}", metric_value(result[key], metric), note
    for name in result["metrics"]["fm"]:
        if name != metric:
            values = {key: metric_value(result["metrics"][key][name], name) for key in models}
            others = [f"{models[key]} {value}" for key, value in reversed(values.items()) if key != "fm"]
            yield metric_title(name), values["fm"], ", ".join(others)
