"""Many runs: a sweep from Python, and a comparison as a table."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console

from fedpft.api.result import Result
from fedpft.config import resolved
from fedpft.config.sweep import SweepConfig, load_sweep
from fedpft.config.trials import TRIALS_FOLDER, planned_trials
from fedpft.report.compare.comparison import compare as compare_runs
from fedpft.report.sweep import SilentWatcher, SweepScreen
from fedpft.sweeps.sweep import run_sweep


def sweep(
    settings: SweepConfig | str | Path, overrides: Sequence[str] = (), *, resume: bool = False, progress: bool = True
) -> pd.DataFrame:
    """Run an experiment at many points of a search space, with several seeds.

    Args:
        settings: `fedpft.SweepConfig(base="config.yaml", space={"method.retained_ratio": {"grid": [0.25, 0.5]}})`, or
            the YAML file of one.
        overrides: of a file: `key=value`; keys of its runs: `run.KEY=value`.
        resume: go on with the sweep in `output_dir`.
        progress: a line for each trial that ends, on a terminal a live table.

    Returns:
        A row for each trial, by its name: the searched settings, `seed`, `status` (`finished`, `stopped`, `failed`),
        `round`, the sweep's metric under its own name, `path` of the run's folder, and `error`.

    Raises:
        ConfigError: settings that cannot work, before any trial starts.

    """
    if not isinstance(settings, SweepConfig):
        settings = load_sweep(settings, overrides)
    elif overrides:
        raise ValueError("overrides: allowed with a sweep's file; use dataclasses.replace on a SweepConfig")
    settings = resolved(settings)
    chosen = settings.search == "optuna"
    total = settings.num_samples * max(1, len(settings.seeds)) if chosen else len(planned_trials(settings))
    shown = SweepScreen(Console(), settings.metric, total) if progress else nullcontext(SilentWatcher())
    with shown as watcher:
        summary = run_sweep(settings, watcher, resume=resume)
    folder = Path(settings.output_dir).resolve() / TRIALS_FOLDER
    rows = [
        {
            "name": trial["name"],
            **trial["settings"],
            **{key: trial[key] for key in ("seed", "status", "round")},
            settings.metric: trial["value"],
            "path": str(folder / trial["name"]),
            "error": trial["error"],
        }
        for trial in summary["trials"]
    ]
    return pd.DataFrame(rows).set_index("name") if rows else pd.DataFrame()


def compare(
    runs: Sequence[Result | str | Path],
    *,
    baseline: str | None = None,
    allow_different: Sequence[str] = (),
    same_within: float | None = None,
    wandb: Sequence[str] = (),
) -> pd.DataFrame:
    """Compare finished runs; those that differ in the seed alone are one group.

    Args:
        runs: results, or folders of runs, or folders of those.
        baseline: a group's label or a run's folder; None: the group of the first run.
        allow_different: what may differ all the same: `rounds`, `task.max_train_examples`.
        same_within: also test whether groups are the same as the baseline but for less than this: points of a
            metric that is a fraction, of another one its own unit.
        wandb: `ENTITY/PROJECT/RUN_ID` of runs of other tools, which are compared by the metric of that name alone.

    Returns:
        A row for each group, the best first, by its label: `metric`, `n` seeds, `mean`, `sd`, `low`, `high` (95 %
        interval); `difference` to the baseline over common seeds with `p_holm` and `verdict`, with `same_within` also
        `p_same_holm`; and the mean prices.
        `attrs["left_out"]`: folder -> why a run does not count.

    Raises:
        ConfigError: nothing to compare, or runs that are not comparable; the message says in what.

    """
    folders = [run.path if isinstance(run, Result) else Path(run) for run in runs]
    found = compare_runs(folders, baseline, allow_different, same_within, wandb)
    rows = []
    for group in found.groups:
        label = group.label
        row = {"group": label, "metric": found.metric, **asdict(found.estimates[label])}
        if label in found.differences:
            difference = found.differences[label]
            row |= {"difference": difference.mean, "p_holm": difference.p_holm, "verdict": found.verdict(label)}
            row |= {} if same_within is None else {"p_same_holm": difference.p_same_holm}
        rows.append(row | dict(found.costs[label]))
    table = pd.DataFrame(rows).set_index("group")
    table.attrs["left_out"] = {str(left.folder): left.reason for left in found.left_out}
    return table
