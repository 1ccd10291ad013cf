"""PURE: a sweep's space -> its trials, each a run's config of its own, all built and checked before any starts."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from itertools import product
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np

from fedpft.config import Config, ConfigError, load_config
from fedpft.config.checks import require
from fedpft.config.sweep import LISTS, Dimension, SweepConfig, as_overrides
from fedpft.config.texts import escaped, quoted
from fedpft.metrics.table import METRICS

TRIALS_FOLDER = "trials"
"""In a sweep's `output_dir`: a run's folder for each trial."""
SETTINGS_FILE, SUMMARY_FILE = "sweep.yaml", "sweep.json"
"""Beside it: the sweep's resolved settings; what came out, when it has ended."""
STATE_FOLDER = "tune"
"""Beside it: Ray Tune's own state."""
RANKING_NUMBERS = (
    *("fm", "fm_copied", "sub_fm", "leakage_gap", "metrics.fm.*", "metrics.sub_fm.*", "fidelity.total.*"),
    *("client_accuracy.*", "attack_success"),
    *("train_loss", "lr", "seconds", "clients/*", "comm/*", "time/*", "memory/*", "privacy/*"),
)
"""What the record of an evaluation round can have (patterns); whether one has it only the run knows."""
_LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Of its folder; a function of settings and seed."""
    settings: Mapping[str, Any]
    """The point of the space: key -> value."""
    config: Config
    """The run's, with its own `output_dir`."""

    def to_json(self) -> str:
        """Return all of it as text."""
        return json.dumps({"name": self.name, "settings": self.settings, "config": asdict(self.config)})

    @staticmethod
    def from_json(text: str) -> "Trial":
        """Return the trial of :meth:`to_json`."""
        content = json.loads(text)
        sections = escaped(content["config"])  # each in one piece, which is many times as fast as key by key
        config = load_config(None, [f"{name}={quoted(settings)}" for name, settings in sections.items()])
        return Trial(name=content["name"], settings=content["settings"], config=config)


def planned_trials(sweep: SweepConfig) -> list[Trial]:
    """Return all trials of a grid or of random draws; of Optuna, those at the ends of the space, which never run.

    Raises:
        ConfigError: the config of one cannot work; the message names key and trial. Or no record has the metric.

    """
    _check_metric(sweep.metric)
    points = {"grid": _grid, "random": _draws, "optuna": _ends}[sweep.search](sweep)
    trials = [trial for point in points for trial in trials_at(sweep, point)]
    return list({trial.name: trial for trial in trials}.values())  # small ranges may give a point twice


def _check_metric(metric: str) -> None:
    is_number = any(fnmatch(metric, pattern) for pattern in RANKING_NUMBERS)
    require(is_number, "metric", metric, ", ".join(RANKING_NUMBERS))
    name = re.split(r"[./]", metric)[-1]
    require(
        not metric.startswith("metrics.") or name in METRICS, "metric", metric, f"metrics.MODEL.{'|'.join(METRICS)}"
    )


def trials_at(sweep: SweepConfig, point: Mapping[str, Any]) -> list[Trial]:
    """Return the trials of one point, one for each seed.

    Raises:
        ConfigError: see :func:`planned_trials`.

    """
    return [make_trial(sweep, point, seed) for seed in sweep.seeds or (None,)]


def make_trial(sweep: SweepConfig, point: Mapping[str, Any], seed: int | None, name: str | None = None) -> Trial:
    """Return a trial; its config says all that its result depends on, so that `fedpft run` gives the same bits.

    Raises:
        ConfigError: see :func:`planned_trials`.

    """
    name = name or trial_name(point, seed)
    seeds = {} if seed is None else {"seed": seed}
    folder = Path(sweep.output_dir).resolve() / TRIALS_FOLDER / name
    own = {"name": name, "output_dir": str(folder), "tracking.group": sweep.name, "tracking.job_type": "trial"}
    try:
        keys = as_overrides({**point, **seeds, **escaped(own)})
        config = load_config(sweep.base, [*as_overrides({**sweep.run}), *keys])
        if config.checkpoint.interval == 0:
            raise ConfigError("checkpoint.interval: found 0, allowed in a sweep: an integer > 0, trials go on from it")
    except ConfigError as error:
        raise ConfigError(f"trial {name}: {error}") from None
    threads = config.server.num_threads or max(1, int(sweep.driver_cpus))
    tags = tuple(dict.fromkeys([*config.tracking.tags, "sweep", sweep.name]))
    return Trial(
        name=name,
        settings=dict(point),
        config=replace(
            config,
            server=replace(config.server, num_threads=threads),
            tracking=replace(config.tracking, tags=tags),
        ),
    )


def trial_name(point: Mapping[str, Any], seed: int | None) -> str:
    """Return e.g. `retained_ratio-0.5_seed-1`: a word of each key, all of them where two are alike."""
    words = [_word(key) for key in point]
    keys = [word if words.count(word) == 1 else key for key, word in zip(point, words, strict=True)]
    parts = [f"{key}-{_short(value)}" for key, value in zip(keys, point.values(), strict=True)]
    name = "_".join([*parts, *([] if seed is None else [f"seed-{seed}"])]) or "base"
    slug = re.sub(r"[^\w.+-]+", "-", name)
    if len(slug) <= _LONGEST_NAME:
        return slug
    return f"{slug[: _LONGEST_NAME - 9]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _word(key: str) -> str:
    """Return the last part of a key that says what it is about: `neurons` of `align.neurons.kind`."""
    parts = key.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in ("name", "kind", "path") else parts[-1]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value).strip("[]")


def _grid(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    return _crossed(sweep.dimensions)


def _draws(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    from fedpft.seeding import numpy_rng  # torch comes with it; a grid does without

    grids = [dimension for dimension in sweep.dimensions if dimension.law == "grid"]
    drawn = [dimension for dimension in sweep.dimensions if dimension.law != "grid"]
    for index in range(sweep.num_samples if drawn else 1):
        rng = numpy_rng(sweep.search_seed, "sweep", index)
        sample = {dimension.key: _draw(dimension, rng) for dimension in drawn}
        yield from ({**sample, **point} for point in _crossed(grids))


def _ends(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """Yield points that hold every option and both ends of every range, each at least once."""
    longest = max(len(dimension.values) for dimension in sweep.dimensions)
    for index in range(longest):
        yield {d.key: d.values[min(index, len(d.values) - 1)] for d in sweep.dimensions}


def _crossed(dimensions: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    keys = [dimension.key for dimension in dimensions]
    for values in product(*(dimension.values for dimension in dimensions)):
        yield dict(zip(keys, values, strict=True))


def _draw(dimension: Dimension, rng: np.random.Generator) -> Any:
    if dimension.law in LISTS:
        return dimension.values[rng.integers(len(dimension.values))]
    low, high = dimension.values
    if dimension.law == "randint":
        return int(rng.integers(low, high + 1))
    if dimension.law == "uniform":
        return float(rng.uniform(low, high))
    return min(high, max(low, exp(rng.uniform(log(low), log(high)))))  # rounding must not leave the range
