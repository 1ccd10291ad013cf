"""Optuna as a search of Tune: points are chosen by the mean score over the seeds of the points before."""

import pickle
from statistics import fmean
from typing import Any

from ray.tune.search import Searcher

from fedpft.config import ConfigError
from fedpft.config.sweep import Dimension, SweepConfig
from fedpft.config.trials import Trial, make_trial, trial_name


def import_optuna() -> Any:
    """Return the package.

    Raises:
        ConfigError: it is not installed.

    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("search: found 'optuna', which is not installed: pip install 'fedpft[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


NOT_COUNTED = "not_counted"
"""In a trial's last report: why it has failed, although it got to its end."""


class SeededOptuna(Searcher):
    """Asks Optuna for a point, tries it with every seed, tells Optuna the mean score of those that did not fail.

    Args:
        sweep: its space, seeds and search seed.

    """

    def __init__(self, sweep: SweepConfig) -> None:
        super().__init__(metric="score", mode="max")
        optuna = import_optuna()
        self._sweep = sweep
        self._space = {dimension.key: _distribution(optuna, dimension) for dimension in sweep.dimensions}
        self._study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=sweep.search_seed)
        )
        self._queue: list[tuple[int, Trial]] = []
        """(Optuna's number of the point, trial) that were not asked for yet."""
        self._running: dict[str, int] = {}
        self._scores: dict[int, list[float | None]] = {}

    def suggest(self, trial_id: str) -> dict[str, str]:
        """Return the next trial."""
        if not self._queue:
            asked = self._study.ask(self._space)
            options = {dimension.key: dimension for dimension in self._sweep.dimensions}
            point = {key: _value(options[key], value) for key, value in asked.params.items()}
            for seed in self._sweep.seeds or (None,):
                name = f"{asked.number:03d}_{trial_name(point, seed)}"  # Optuna may ask for a point twice
                self._queue.append((asked.number, make_trial(self._sweep, point, seed, name)))
        number, trial = self._queue.pop(0)
        self._running[trial_id] = number
        return {"trial": trial.to_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna when the last seed's trial has ended."""
        number = self._running.pop(trial_id)
        scores = self._scores.setdefault(number, [])
        scores.append(result["score"] if result and not error and NOT_COUNTED not in result else None)
        if len(scores) == max(1, len(self._sweep.seeds)):
            good = [score for score in scores if score is not None]
            failed = import_optuna().trial.TrialState.FAIL
            if good:
                self._study.tell(number, fmean(good))
            else:
                self._study.tell(number, state=failed)

    def save(self, checkpoint_path: str) -> None:
        """Write all that was asked and told into Tune's own folder of the sweep, all of which Tune pickles."""
        with open(checkpoint_path, "wb") as file:
            pickle.dump(self.__dict__, file)

    def restore(self, checkpoint_path: str) -> None:
        """Read it back."""
        with open(checkpoint_path, "rb") as file:
            self.__dict__.update(pickle.load(file))


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    kinds = optuna.distributions
    if dimension.law == "choice":
        return kinds.CategoricalDistribution(range(len(dimension.values)))  # options of any type
    low, high = dimension.values
    if dimension.law == "randint":
        return kinds.IntDistribution(low, high)
    return kinds.FloatDistribution(low, high, log=dimension.law == "loguniform")


def _value(dimension: Dimension, value: Any) -> Any:
    return dimension.values[value] if dimension.law == "choice" else value
