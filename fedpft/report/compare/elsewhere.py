"""Runs of other tools, as Weights & Biases has them: compared by a metric of the same name, and by nothing else.

Nobody can tell from here whether data, split and evaluation are the same: page and terminal say so.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpft.config.flat import flat_settings
from fedpft.metrics.table import metric_row
from fedpft.report.compare.groups import Group
from fedpft.report.compare.runs import LeftOut, Run
from fedpft.tracking.wandb_files import read_wandb_files
from fedpft.tracking.wandb_runs import WandbRun, read_wandb_run

_MOST_NAMES = 8


def read_elsewhere(paths: Sequence[str], like: Run) -> tuple[list[Run], list[LeftOut]]:
    """Return the runs in W&B that can stand beside ours, and why the others cannot.

    Args:
        paths: `ENTITY/PROJECT/RUN_ID` of each, or a folder with files of W&B's.
        like: one of ours; its metric is the one that is looked for, in a run's summary under the same name.

    Raises:
        ConfigError: W&B has no such run, or is out of reach; a folder without one.

    """
    metric = str(like.result["metric"])
    runs, left_out = list[Run](), list[LeftOut]()
    for found in _found(paths, metric):
        if reason := _why_not(found, metric):
            left_out.append(LeftOut(Path(found.path), reason))
        else:
            runs.append(_as_run(found, metric, str(like.result["metric_goal"])))
    return runs, left_out


def _found(paths: Sequence[str], metric: str) -> list[WandbRun]:
    """Return each run once, as it was named first."""
    found: dict[str, WandbRun] = {}
    for path in dict.fromkeys(paths):
        here = Path(path)
        for run in read_wandb_files(here, metric) if here.is_dir() else [read_wandb_run(path, metric)]:
            found.setdefault(run.path, run)
    return list(found.values())


def elsewhere_note(groups: Sequence[Group]) -> str:
    """Return what is to be known of the groups that another tool made; nothing where there is none."""
    labels = ", ".join(group.label for group in groups if group.is_elsewhere)
    return labels and (
        f"{labels}: of another tool, read from W&B. The metric has the same name; whether data, split, evaluation "
        "and budget are the same nobody has checked. Rounds are its steps, and equal seeds are no pairs."
    )


def _why_not(found: WandbRun, metric: str) -> str:
    """Return why a run cannot be compared; nothing if it can."""
    if found.state != "finished":
        return f"not finished: {found.state}, says W&B"
    value = _last(found.summary.get(metric))
    if value is None:
        numbers = sorted(name for name, each in found.summary.items() if name[:1] != "_" and _last(each) is not None)
        has = ", ".join(numbers[:_MOST_NAMES]) + (", ..." if len(numbers) > _MOST_NAMES else "")
        return f"its summary in W&B has no last number {metric!r}; it has: {has or 'none'}"
    if not math.isfinite(value):
        return f"its {metric} is {value}"
    if metric_row(metric).is_fraction and not 0 <= value <= 1:
        return f"its {metric} is {value:g}, ours is a fraction from 0 to 1"
    if _seed(found.config) is None:
        return "its config in W&B has no whole number `seed`, by which runs are grouped"
    return ""


def _as_run(found: WandbRun, metric: str, goal: str) -> Run:
    """Return it as one of ours that has a metric, a curve and its own settings."""
    project = found.path.rpartition("/")[0]
    settings = {key: value for key, value in flat_settings(found.config).items() if key.rpartition(".")[2] != "seed"}
    return Run(
        folder=Path(found.path),
        settings=settings,
        result={
            "name": found.name,
            "seed": _seed(found.config),
            "method": f"W&B {project}",
            "metric": metric,
            "metric_goal": goal,
            "fm": _last(found.summary[metric]),
        },
        records=[{"round": step, "fm": value} for step, value in found.curve],
        partition=None,
        is_elsewhere=True,
    )


def _last(value: Any) -> float | None:
    """Return the last value that a summary tells; where it keeps only the best one, there is none."""
    if isinstance(value, Mapping):
        value = value.get("last")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _seed(config: Mapping[str, Any]) -> int | None:
    """Return the one seed of a config, whichever section it is in."""
    seeds = [json.loads(value) for key, value in flat_settings(config).items() if key.rpartition(".")[2] == "seed"]
    return seeds[0] if len(seeds) == 1 and type(seeds[0]) is int else None
