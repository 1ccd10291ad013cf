"""A sweep's settings: which run, which space, which search; all checked before anything starts.

name: compression
base: ../configs/quickstart.yaml          # from the folder of this file
run: {federated: {rounds: 8}}             # on top of it, for every trial
space:
  method.retained_ratio: {grid: [0.125, 0.25, 0.5]}
seeds: [1, 2]
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from fedpft.config.checks import ConfigError, require, require_nameable, require_repeats
from fedpft.config.loading import read_file, read_override
from fedpft.config.run import Config
from fedpft.config.texts import SettingsOf, quoted

LISTS = ("grid", "choice")
"""Laws that name their values; the others name the two ends of a range, both inclusive."""
LAWS = (*LISTS, "uniform", "loguniform", "randint")
ALLOWED_LAWS = {"grid": ("grid",), "random": LAWS, "optuna": LAWS[1:]}
"""`search` -> laws that it knows."""

Structured = TypeVar("Structured")


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One key of the space and the law of its values."""

    key: str
    """A key of the run's config, or a section whose values are words (parts)."""
    law: str
    """One of `LAWS`."""
    values: tuple[Any, ...]
    """The options, or the ends (low, high)."""

    def __post_init__(self) -> None:
        name = f"space.{self.key}.{self.law}"
        if self.law in LISTS:
            require(bool(self.values), name, list(self.values), "a list of values")
            unique = len({json.dumps(value) for value in self.values}) == len(self.values)
            require(unique, name, list(self.values), "values that differ")
            return
        numbers = len(self.values) == 2 and all(isinstance(end, int | float) for end in self.values)
        require(numbers and self.values[0] < self.values[1], name, list(self.values), "two numbers [low, high]")
        require(self.law != "loguniform" or self.values[0] > 0, name, list(self.values), "two numbers [low, high] > 0")
        whole = all(isinstance(end, int) for end in self.values)
        require(self.law != "randint" or whole, name, list(self.values), "two integers [low, high]")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep: runs that differ in the keys of a space, and in their seeds."""

    name: str = "sweep"
    """The sweep's name, and its group in W&B."""
    base: str
    """The config file of the run. A relative path starts at the sweep's own folder."""
    run: dict[str, Any] = field(default_factory=dict, metadata={"type": SettingsOf(Config)})
    """Keys of the run's config that every trial has, on top of `base`. Sections may be words, as on the command
    line."""
    space: dict[str, Any] = field(default_factory=dict, metadata={"type": SettingsOf(Config, laws=True)})
    """The space: for each key of the run's config the law of its values. `{grid: [...]}` takes every value. `{choice:
    [...]}`, `{uniform: [a, b]}`, `{loguniform: [a, b]}` and `{randint: [a, b]}` draw, ends included. On the command
    line the whole space is one value: `'space={...}'`."""
    seeds: tuple[int, ...] = ()
    """Seeds with which every point of the space is run. An empty list takes the base's seed."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """How points are chosen. `grid` takes every point. `random` makes `num_samples` draws, each with every point of the
    keys that have a grid. `optuna` takes `num_samples` points, each chosen by the results of those before it (mean over
    the seeds)."""
    num_samples: int = 10
    """With `random` and `optuna`, how many points are drawn."""
    search_seed: int = 0
    """Seed of the search's draws; the runs have their own."""
    scheduler: Literal["none", "asha", "hyperband"] = "none"
    """Who stops bad trials early, by what they report in evaluation rounds: nobody (`none`), ASHA, or HyperBand, which
    pauses trials."""
    grace_rounds: int = 1
    """With `asha`, how many rounds every trial gets."""
    reduction_factor: int = 3
    """With `asha` and `hyperband`, one of so many trials goes on."""
    metric: str = "fm"
    """What is compared: a dotted key of a round's record in evaluation rounds, e.g. `sub_fm`, `metrics.fm.macro_f1` or
    `leakage_gap`."""
    goal: Literal["max", "min"] | None = None
    """Which way the metric is better. null takes that of the task's primary metric."""
    max_concurrent: int | None = None
    """How many trials run at a time. null runs as many as there is room for. Not with `hyperband`, which stops some of
    the trials that have begun: with few of them it stops none."""
    max_retries: int = 1
    """How often a trial that fails is tried again, from its last checkpoint."""
    driver_cpus: float = 1.0
    """How many cores a trial's driver has, which is also its number of torch threads (whole, at least 1). Its actors
    have those of `pool`."""
    driver_gpus: float = 0.0
    """How many GPUs a trial's driver has. 0 takes what its server claims (`server.num_gpus`); with `pool.kind =
    sequential` it is one for each trial, or a share of those there are for `max_concurrent` trials."""
    output_dir: str = "outputs/sweeps/${name}"
    """The sweep's folder. Its trials are in `trials/`."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip(". ")) and "/" not in self.name, "name", self.name, "a name without /")
        require(bool(self.output_dir), "output_dir", self.output_dir, "a folder")
        require_nameable("output_dir", self.output_dir)
        require(len(set(self.seeds)) == len(self.seeds), "seeds", list(self.seeds), "seeds that differ")
        for name in ("num_samples", "grace_rounds", "driver_cpus"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")
        for name in ("max_retries", "driver_gpus"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")
        require_repeats("", self, "num_samples", "max_retries")
        require(self.reduction_factor > 1, "reduction_factor", self.reduction_factor, "an integer > 1")
        alone = self.max_concurrent is None or self.max_concurrent > 0
        require(alone, "max_concurrent", self.max_concurrent, "null or an integer > 0")
        whole = self.scheduler != "hyperband" or self.max_concurrent is None
        require(whole, "max_concurrent", self.max_concurrent, "null with scheduler = hyperband")
        require("seed" not in self.space, "space", "seed", "any other key; seeds are listed in `seeds`")
        require(bool(self.space) or self.search != "optuna", "space", {}, "keys and laws with search = optuna")
        comparable = self.search != "optuna" or self.scheduler == "none" or len(self.seeds) <= 1
        require(comparable, "scheduler", self.scheduler, "none with search = optuna and several seeds")
        for dimension in self.dimensions:
            laws = ALLOWED_LAWS[self.search]
            allowed = f"{', '.join(laws)} with search = {self.search}"
            require(dimension.law in laws, f"space.{dimension.key}", dimension.law, allowed)

    @property
    def dimensions(self) -> list[Dimension]:
        """The space, in the file's order."""
        return [_dimension(key, law) for key, law in self.space.items()]


def _dimension(key: str, law: Any) -> Dimension:
    fits = isinstance(law, Mapping) and len(law) == 1 and next(iter(law)) in LAWS
    require(fits, f"space.{key}", law, f"one law of {', '.join(LAWS)}, e.g. {{grid: [1, 2]}}")
    (name, values), *_ = law.items()
    require(isinstance(values, Sequence) and not isinstance(values, str), f"space.{key}.{name}", values, "a list")
    return Dimension(key=key, law=name, values=tuple(values))


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep's file; `base` becomes a path that can be opened from here.

    Raises:
        ConfigError: unreadable, an unknown key, a value that cannot work; in one line.

    """
    sweep = read_structured(SweepConfig, path, overrides)
    return replace(sweep, base=str(Path(path).parent / sweep.base))


def read_structured(kind: type[Structured], path: str | Path, overrides: Sequence[str] = ()) -> Structured:
    """Merge a YAML file and ``key=value`` overrides into a dataclass that is no run's config.

    Raises:
        ConfigError: see :func:`load_sweep`.

    """
    layers = [read_file(path, kind), *(read_override(item, kind) for item in overrides)]
    spaces = [layer for layer in layers if "space" in layer]
    for replaced in spaces[:-1]:  # two laws of a key do not merge
        del replaced["space"]
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), *layers))  # type: ignore[return-value]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:  # OmegaConf's errors carry many lines; the user gets the first
        key = getattr(error, "full_key", None) or ""
        if isinstance(error, ConfigKeyError):
            allowed = ", ".join(entry.name for entry in fields(kind))  # type: ignore[arg-type]
            raise ConfigError(f"{path}: {key}: unknown key; allowed: {allowed}") from None
        raise ConfigError(": ".join([str(path), *[key] * bool(key), str(error).splitlines()[0]])) from None


def as_overrides(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return nested settings as ``key=value`` overrides, the values as JSON."""
    overrides: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            overrides += as_overrides(value, f"{prefix}{key}.")
        else:
            overrides.append(f"{prefix}{key}={quoted(value)}")
    return overrides
