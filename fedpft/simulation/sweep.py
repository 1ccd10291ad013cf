"""Trials on Ray Tune: who runs when, who is stopped early, who is tried again. The only importer of Tune.

    planned trials, or Optuna -> Tune, which starts a trial when there is room for its driver and all of its actors
    trial: play(trial, report) in a Ray actor -> after every evaluation round: report(round, value, score)
    -> the scheduler lets it go on, pauses it or stops it -> the watcher hears

Two trials never wait for each other's halves: a trial's placement group has a place for its driver and one for each of
its actors, given together or not at all (see `fedpft.simulation.pool.reservation`). A trial's state is its run's own
checkpoint, in its own folder; Tune's is only the round that was reported last.
"""

import json
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Protocol

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, TrialScheduler

from fedpft.config.sweep import SweepConfig
from fedpft.config.trials import STATE_FOLDER, Trial
from fedpft.interrupt import NotCountedError, held_back
from fedpft.simulation.cluster import cluster_nodes, connect
from fedpft.simulation.places import bundles, check_room
from fedpft.simulation.reasons import reason
from fedpft.simulation.search import NOT_COUNTED, SeededOptuna

_ROUND_FILE = "round"
_QUIET = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

Report = Callable[[int, float, float], None]
"""Takes round, value of the metric, and score: the value with the sign that makes more better."""
Play = Callable[[Trial, Report], None]
"""Runs a trial to its end, or goes on with it; may report rounds again. Travels to the trial's process."""


class Watcher(Protocol):
    """Hears what trials do, in the process that called."""

    def trial_started(self, name: str) -> None:
        """It starts, or goes on after a pause or failure."""

    def trial_reported(self, name: str, round_index: int, value: float) -> None:
        """An evaluation round is over."""

    def trial_retried(self, name: str, reason: str) -> None:
        """It failed, and is tried again."""

    def trial_ended(self, name: str, *, failed: bool) -> None:
        """It will not run again: finished, stopped early, or failed; why it did comes with the results."""


def run_trials(
    sweep: SweepConfig, trials: Sequence[Trial], play: Play, watcher: Watcher, *, restore: bool = False
) -> list[tuple[Trial, str | None]]:
    """Run all trials, or those that Optuna suggests; return each with the reason why it failed, or None.

    Args:
        sweep: its settings.
        trials: the planned ones; with Optuna examples of its space.
        play: runs one.
        watcher: hears of them.
        restore: go on with the schedule that is in the sweep's folder, if there is one.

    Raises:
        ConfigError: the cluster can never hold a trial, or there is none.

    """
    os.environ.update(_QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the watcher hears of errors
    pool = trials[0].config.pool
    owned = connect(pool.address)
    try:
        nodes = cluster_nodes()
        for trial in trials:
            check_room(sweep, trial.config, nodes)
        folder = Path(sweep.output_dir).resolve()

        def places(found: dict[str, str]) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory(bundles(sweep, _trial(found).config, nodes))

        trainable = tune.with_resources(partial(_train, play, os.getcwd()), places)
        _Told.watcher = watcher
        if restore and tune.Tuner.can_restore(str(folder / STATE_FOLDER)):
            tuner = tune.Tuner.restore(
                str(folder / STATE_FOLDER), trainable, resume_unfinished=True, restart_errored=True
            )
        else:
            plain = [trial.to_json() for trial in trials]
            tuner = tune.Tuner(
                trainable,
                param_space={} if sweep.search == "optuna" else {"trial": tune.grid_search(plain)},
                tune_config=_tune_config(sweep, max(trial.config.federated.rounds for trial in trials)),
                run_config=tune.RunConfig(
                    name=STATE_FOLDER,
                    storage_path=str(folder),
                    failure_config=tune.FailureConfig(max_failures=sweep.max_retries),
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                    callbacks=[_Told()],
                    verbose=0,
                ),
            )
        with held_back() as _Told.check:
            results = tuner.fit()
        planned = [] if sweep.search == "optuna" else trials
        return _ended(planned, results)
    finally:
        if owned:
            ray.shutdown()


def _ended(planned: Sequence[Trial], results: tune.ResultGrid) -> list[tuple[Trial, str | None]]:
    """Return every trial, the planned ones in their order, and why it failed.

    A `Result` of a trial that reported nothing has no config, so the trials themselves are asked.
    """
    found = {_name(one): (_trial(one.config), _failure(one)) for one in results._experiment_analysis.trials}
    never = {trial.name: (trial, "Ray Tune did not start it") for trial in planned}
    return list((never | found).values())


def _failure(trial: Any) -> str | None:
    if trial.status == "TERMINATED":
        return (trial.last_result or {}).get(NOT_COUNTED)
    error = _unpickled(trial.get_pickled_error) or trial.get_error()
    return reason(error) if error else f"Ray Tune left it {trial.status.lower()}"


def _unpickled(load: Callable[[], Any]) -> Any:
    """Return an error, or None for one of a class that this process does not have."""
    try:
        return load()
    except Exception:
        return None


def _tune_config(sweep: SweepConfig, max_rounds: int) -> tune.TuneConfig:
    by_rounds: dict[str, Any] = {"time_attr": "round", "max_t": max_rounds, "reduction_factor": sweep.reduction_factor}
    schedulers: dict[str, Callable[[], TrialScheduler]] = {
        "none": FIFOScheduler,
        "asha": lambda: ASHAScheduler(grace_period=min(sweep.grace_rounds, max_rounds), **by_rounds),
        "hyperband": lambda: HyperBandScheduler(**by_rounds),
    }
    with_optuna = sweep.search == "optuna"
    return tune.TuneConfig(
        metric="score",
        mode="max",
        search_alg=SeededOptuna(sweep) if with_optuna else None,
        num_samples=sweep.num_samples * max(1, len(sweep.seeds)) if with_optuna else 1,
        scheduler=schedulers[sweep.scheduler](),
        max_concurrent_trials=sweep.max_concurrent,
        trial_name_creator=_name,
        trial_dirname_creator=_name,
    )


def _trial(found: dict[str, str]) -> Trial:
    """Return the trial from Tune's config, which takes nothing but plain values."""
    return Trial.from_json(found["trial"])


def _name(trial: Any) -> str:
    return json.loads(trial.config["trial"])["name"]


def _train(play: Play, home: str, found: dict[str, str]) -> None:
    """Play a trial in the process that Tune started for it; relative paths are the caller's, not Tune's."""
    with suppress(OSError):  # another machine may have no such folder
        os.chdir(home)
    checkpoint = tune.get_checkpoint()
    reported = 0
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            reported = int(Path(folder, _ROUND_FILE).read_text(encoding="utf-8"))
    metrics: dict[str, Any] = {"round": reported, "value": -inf, "score": -inf}

    def report(round_index: int, value: float, score: float) -> None:
        nonlocal reported, metrics
        metrics = {"round": round_index, "value": value, "score": score}
        if round_index <= reported:
            return
        reported = round_index
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, _ROUND_FILE).write_text(str(round_index), encoding="utf-8")
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    try:
        play(_trial(found), report)
    except NotCountedError as error:  # raised, it would be tried again
        tune.report(metrics | {NOT_COUNTED: str(error)})


class _Told(tune.Callback):
    """Tells the watcher."""

    watcher: ClassVar[Watcher]
    """Of the class, as the next, because a schedule that is restored brings callbacks of its own."""
    check: ClassVar[Callable[[], None]]
    """Raises when a signal came; between two steps Tune lets it through."""

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        type(self).check()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.watcher.trial_started(_name(trial))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        if NOT_COUNTED not in result:
            self.watcher.trial_reported(_name(trial), result["round"], result["value"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # not yet in the storage, where `get_pickled_error` and `get_error` look for it
        pickled, text = trial.pickled_error_file, trial.error_file
        error = pickled and _unpickled(lambda: pickle.loads(Path(pickled).read_bytes()))
        self.watcher.trial_retried(_name(trial), reason(error or (text and Path(text).read_text("utf-8")) or ""))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.watcher.trial_ended(_name(trial), failed=NOT_COUNTED in (trial.last_result or {}))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.watcher.trial_ended(_name(trial), failed=True)
