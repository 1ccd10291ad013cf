"""A sweep from its settings to `sweep.json`: every trial is a run in a folder of its own.

    output_dir/sweep.yaml          the resolved settings
    output_dir/trials/NAME/        a run's folder: config.yaml, rounds.jsonl, result.json, ...
    output_dir/tune/               the schedule, from which `resume` goes on
    output_dir/sweep.json          what came out, best first

Trials are idempotent: one that is started again goes on from its checkpoint, or only repeats what it reported if it is
finished. So a sweep may be killed at any moment, and extended by more seeds or values.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedpft.config import ConfigError
from fedpft.config.loading import dump_structured
from fedpft.config.sweep import SweepConfig
from fedpft.config.trials import SETTINGS_FILE, STATE_FOLDER, SUMMARY_FILE, TRIALS_FOLDER, Trial, planned_trials
from fedpft.federated.dropped import why_not_counted
from fedpft.federated.observer import SilentObserver
from fedpft.interrupt import NotCountedError
from fedpft.report.intervals import half_interval
from fedpft.run.pipeline import RunResult, run
from fedpft.run.resume import find_run, is_finished
from fedpft.storage.lock import held
from fedpft.storage.output import ROUNDS_FILE, Kind, claim_output_dir, write_json, write_text
from fedpft.tracking.services import check_trackers

if TYPE_CHECKING:  # Ray is loaded after all trials were checked
    from fedpft.simulation.sweep import Report, Watcher

SWEEP = Kind(what="sweep", marker=TRIALS_FOLDER, others=(SETTINGS_FILE, SUMMARY_FILE, STATE_FOLDER))

NO_RESULT = "it ended without a result"
"""Of a trial that nobody stopped."""

PATIENCE_SECONDS = 60.0
"""With the process of a trial's last attempt, which may still be ending."""


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """What became of a trial."""

    name: str
    settings: Mapping[str, Any]
    seed: int
    status: str
    """`finished`; `stopped` early by the scheduler; `failed`."""
    round: int
    """Of its last evaluation; 0: it has none."""
    value: float | None
    """The metric there."""
    score: float | None
    """The value with the sign that makes more better."""
    metric: str | None
    """Name of the task's primary metric."""
    error: str | None


def run_sweep(
    sweep: SweepConfig, watcher: "Watcher", *, resume: bool = False, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Run a sweep to its end; return the content of sweep.json.

    Args:
        sweep: its settings.
        watcher: hears what trials do.
        resume: go on with the sweep in `output_dir`; else one that is there is moved to `NAME.1`, `NAME.2`, ...
        say: takes a line about what was moved.

    Raises:
        ConfigError: settings that cannot work, or a sweep that is in progress there, before any trial starts.

    """
    start = time.perf_counter()
    trials = planned_trials(sweep)
    folder = Path(sweep.output_dir)
    from fedpft.simulation.search import import_optuna
    from fedpft.simulation.sweep import run_trials

    if sweep.search == "optuna":
        import_optuna()
    check_trackers(trials[0].config.tracking)  # each trial's process does, but nobody reads its screen
    with held(folder, SWEEP.what):
        is_there = resume and (folder / TRIALS_FOLDER).exists()
        if not is_there:
            claim_output_dir(folder, SWEEP, say)
            (folder / TRIALS_FOLDER).mkdir()
        text = dump_structured(sweep)
        saved = folder / SETTINGS_FILE
        unchanged = saved.exists() and saved.read_text(encoding="utf-8") == text
        write_text(saved, text)
        play = partial(play_trial, sweep.metric, sweep.goal)
        ended = run_trials(sweep, trials, play, watcher, restore=is_there and unchanged)
        outcomes = [outcome(sweep, trial, error) for trial, error in ended]
        summary = {"wall_seconds": time.perf_counter() - start, "resumed": resume, **summarise(sweep, outcomes)}
        write_json(folder / SUMMARY_FILE, summary)
        return summary


def play_trial(metric: str, goal: str | None, trial: Trial, report: "Report") -> None:
    """Run a trial to its end, or go on with it; report every evaluation round, those before its checkpoint first.

    Raises:
        NotCountedError: a client never trained, and that is not allowed.

    """
    folder, observer = Path(trial.config.output_dir), _Reporting(metric, goal, report)
    with nullcontext() if is_finished(trial.config) else held(folder, patience_seconds=PATIENCE_SECONDS):
        found = find_run(trial.config)
        if isinstance(found, RunResult):
            _require_counted(found, trial)
        if found is not None:
            for record in evaluations(folder):
                observer.tell(record)
        finished = found if isinstance(found, RunResult) else run(trial.config, observer, found)
        _require_counted(finished, trial)  # before the last report, with which a scheduler may stop the process
        observer.flush()


def _require_counted(finished: RunResult, trial: Trial) -> None:
    if reason := why_not_counted(finished.result, allow_dropped=trial.config.federated.allow_dropped):
        raise NotCountedError(reason)


class _Reporting(SilentObserver):
    """Reports an evaluation round when its checkpoint or the result is written: a trial stopped there loses nothing."""

    def __init__(self, metric: str, goal: str | None, report: "Report") -> None:
        self._metric, self._goal, self._report = metric, goal, report
        self._last: Mapping[str, Any] | None = None

    def round_finished(self, record: Mapping[str, Any]) -> None:
        self._last = record if "fm" in record else None

    def round_started(self, round_index: int, num_rounds: int, client_ids: Sequence[int]) -> None:
        self.flush()

    def flush(self) -> None:
        """Report what was not yet."""
        if self._last is not None:
            self.tell(self._last)
            self._last = None

    def tell(self, record: Mapping[str, Any]) -> None:
        """Report a record."""
        value = metric_in(record, self._metric)
        self._report(record["round"], value, _score(value, self._goal, record))


def metric_in(record: Mapping[str, Any], metric: str) -> float:
    """Return a number of a round's record by its dotted key.

    Raises:
        ConfigError: it has none of that name; the message tells all.

    """
    numbers = dict(_numbers(record))
    if metric not in numbers:
        raise ConfigError(f"metric: found {metric!r}, allowed: {', '.join(numbers)}")
    return numbers[metric]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluation rounds' records of a run, in order; a line that was cut off is none."""
    path, records = folder / ROUNDS_FILE, []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if line.endswith("}\n"):
            records.append(json.loads(line))
    return [record for record in records if "fm" in record]


def outcome(sweep: SweepConfig, trial: Trial, error: str | None) -> TrialOutcome:
    """Return what a trial's folder says, and why it failed if it did."""
    folder = Path(trial.config.output_dir)
    last = next(reversed(evaluations(folder)), None)
    numbers = {} if last is None else dict(_numbers(last))
    value = numbers.get(sweep.metric)
    finished = (folder / "result.json").exists()
    if not error and not finished and sweep.scheduler == "none":
        error = NO_RESULT
    status = "failed" if error else "finished" if finished else "stopped"
    return TrialOutcome(
        name=trial.name,
        settings=trial.settings,
        seed=trial.config.seed,
        status=status,
        round=last["round"] if last else 0,
        value=value,
        score=None if last is None or value is None else _score(value, sweep.goal, last),
        metric=last["metric"] if last else None,
        error=error,
    )


def summarise(sweep: SweepConfig, outcomes: Sequence[TrialOutcome]) -> dict[str, Any]:
    """Return sweep.json: all trials, and for each point of the space the mean over its seeds with its 95 % interval.

    Points whose trials all finished come first, the best of them at the top; failed trials are in no mean.
    """
    points: dict[str, list[TrialOutcome]] = {}
    for found in sorted(outcomes, key=lambda found: found.seed):
        points.setdefault(json.dumps(found.settings), []).append(found)
    rows = []
    for trials in points.values():
        good = [trial for trial in trials if trial.status != "failed" and trial.value is not None]
        values = [trial.value for trial in good if trial.value is not None]
        rows.append({
            "settings": trials[0].settings,
            "seeds": [trial.seed for trial in good],
            "values": values,
            "mean": fmean(values) if values else None,
            "interval": half_interval(values),
            "round": min((trial.round for trial in good), default=0),
            "status": {status: n for status in ("finished", "stopped", "failed")
                       if (n := sum(trial.status == status for trial in trials))},
            "score": fmean(trial.score for trial in good if trial.score is not None) if values else None,
        })  # fmt: skip

    def rank(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
        return row["mean"] is None, set(row["status"]) != {"finished"}, -(row["score"] or 0.0)

    return {
        "name": sweep.name,
        "metric": sweep.metric,
        "task_metric": next((found.metric for found in outcomes if found.metric), None),
        "points": sorted(rows, key=rank),
        "trials": [asdict(found) for found in outcomes],
    }


def _numbers(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + key, float(value)))
    return found


def _score(value: float, goal: str | None, record: Mapping[str, Any]) -> float:
    return value if (goal or record["metric_goal"]) == "max" else -value
