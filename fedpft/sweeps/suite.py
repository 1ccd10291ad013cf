"""A suite from its settings to a table: cells that are finished are only read, the others run as a sweep's trials."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpft.config import ConfigError
from fedpft.config.suite import HeadConfig, SuiteConfig, published_values
from fedpft.config.trials import STATE_FOLDER, TRIALS_FOLDER, Trial, trials_at
from fedpft.federated.dropped import why_not_counted
from fedpft.storage.lock import held
from fedpft.storage.output import Kind, claim_output_dir

if TYPE_CHECKING:  # torch and Ray are loaded when there is something to run
    from fedpft.simulation.sweep import Watcher

RESULT_FILE = "result.json"

SUITE = Kind(what="suite", marker=TRIALS_FOLDER, others=(STATE_FOLDER,))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number of the table."""

    values: tuple[float, ...]
    """One for each seed whose run is finished."""
    num_seeds: int
    metric: str | None
    """Its name; None: no run is finished."""
    published: float | None
    """In %."""


def suite_trials(suite: SuiteConfig) -> list[Trial]:
    """Return the runs of all cells; cells with the same settings share theirs.

    Raises:
        ConfigError: a cell's config cannot work; the message names key and cell.

    """
    found = (trial for row in suite.rows for column in suite.columns for trial in _cell_trials(suite, row, column))
    return list({trial.name: trial for trial in found}.values())


def missing_trials(trials: list[Trial]) -> list[Trial]:
    """Return those that are not finished.

    Raises:
        ConfigError: a finished one has other settings.

    """
    started = [trial for trial in trials if _is_finished(trial)]
    if started:
        from fedpft.run.resume import find_run

        for trial in started:
            find_run(trial.config)  # looks at the settings
    return [trial for trial in trials if trial not in started]


def uncounted_trials(trials: list[Trial]) -> dict[str, str]:
    """Return why finished ones are not in the table, by name: clients that never trained."""
    found = {
        trial.name: why_not_counted(_result(trial), allow_dropped=trial.config.federated.allow_dropped)
        for trial in trials
        if _is_finished(trial)
    }
    return {name: reason for name, reason in found.items() if reason}


def run_suite(suite: SuiteConfig, watcher: "Watcher") -> dict[str, str | None]:
    """Run the cells that are not finished; return why each failed (None: it did not), by name.

    Raises:
        ConfigError: settings that cannot work, or a suite that is in progress there, before any cell starts.

    """
    folder = Path(suite.output_dir)
    with held(folder, SUITE.what):
        missing = missing_trials(suite_trials(suite))
        if not missing:
            return {}
        if not (folder / SUITE.marker).exists():
            claim_output_dir(folder, SUITE)
        return _run_missing(suite, missing, watcher)


def _run_missing(suite: SuiteConfig, missing: list[Trial], watcher: "Watcher") -> dict[str, str | None]:
    from functools import partial

    from fedpft.simulation.sweep import run_trials
    from fedpft.sweeps.sweep import outcome, play_trial
    from fedpft.tracking.services import check_trackers

    check_trackers(missing[0].config.tracking)  # see `run_sweep`
    ended = run_trials(suite.sweep, missing, partial(play_trial, "fm", None), watcher)
    return {trial.name: outcome(suite.sweep, trial, error).error for trial, error in ended}


def table_of(suite: SuiteConfig) -> list[list[Cell]]:
    """Return what is finished, row by row."""
    published = published_values(suite)
    return [
        [_cell(suite, row, column, value) for column, value in zip(suite.columns, values, strict=True)]
        for row, values in zip(suite.rows, published, strict=True)
    ]


def _is_finished(trial: Trial) -> bool:
    return (Path(trial.config.output_dir) / RESULT_FILE).exists()


def _result(trial: Trial) -> dict[str, Any]:
    path = Path(trial.config.output_dir) / RESULT_FILE
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        result["metrics"]["fm"][result["metric"]]
    except (ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ConfigError(f"output_dir: found {path} damaged ({found}), allowed: a whole one, or none") from None
    return result


def _cell_trials(suite: SuiteConfig, row: HeadConfig, column: HeadConfig) -> list[Trial]:
    return trials_at(suite.sweep, {**row.set, **column.set})


def _cell(suite: SuiteConfig, row: HeadConfig, column: HeadConfig, published: float | None) -> Cell:
    trials = _cell_trials(suite, row, column)
    uncounted = uncounted_trials(trials)
    results = [_result(trial) for trial in trials if _is_finished(trial) and trial.name not in uncounted]
    metric = next((column.metric or result["metric"] for result in results), None)
    values = tuple(result["metrics"]["fm"][metric] for result in results)
    return Cell(values=values, num_seeds=len(trials), metric=metric, published=published)
