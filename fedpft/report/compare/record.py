"""A comparison as the numbers of `compare.json`."""

from dataclasses import asdict
from typing import Any

from fedpft.report.clients import VIEWS
from fedpft.report.compare.comparison import Comparison


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return the content of `compare.json`."""
    groups = [
        {
            "label": group.label,
            **asdict(comparison.estimates[group.label]),
            "binomial_error": comparison.error_of_one_run(group.label),
            "difference": asdict(found) if (found := comparison.differences.get(group.label)) else None,
            "verdict": comparison.verdict(group.label) if group.label in comparison.differences else None,
            "costs": comparison.costs[group.label],
            **{view.key: comparison.client_spreads(view).get(group.label) for view in VIEWS},
            "runs": [
                {"folder": str(run.folder), "seed": run.seed, comparison.metric: run.value} for run in group.finished
            ],
        }
        for group in comparison.groups
        if group.finished
    ]
    labels = [group.label for group in comparison.groups]
    return {
        "metric": comparison.metric,
        "metric_goal": comparison.goal,
        "baseline": comparison.baseline,
        "groups": groups,
        "pareto": {axis: comparison.front(axis) for axis in comparison.axes},
        "settings": {key: dict(zip(labels, values, strict=True)) for key, values in comparison.setting_rows()},
        "same_within": comparison.same_within,
        "noise": asdict(noise) if (noise := comparison.noise) else None,
        "effects": [asdict(effect) for effect in comparison.effects or ()],
        "left_out": [{"folder": str(left.folder), "reason": left.reason} for left in comparison.left_out],
    }
