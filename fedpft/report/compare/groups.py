"""Runs that differ only in their seed are one group, named by what sets it apart; runs that cannot be compared."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpft.config import ConfigError, config_keys
from fedpft.report.compare.runs import Run

DIFFERENCES_ALLOWED = ("rounds", "task.max_train_examples")
"""Of `comparable`, what a user may say does not matter."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of the same settings, one for each seed."""

    label: str
    runs: Sequence[Run]

    @property
    def finished(self) -> list[Run]:
        """The runs that count: statistics and prices are theirs alone."""
        return [run for run in self.runs if run.is_finished]

    @property
    def values(self) -> dict[int, float]:
        """Seed -> primary metric of the plugged-in FM, of finished runs."""
        return {run.seed: run.value for run in self.finished}

    @property
    def is_elsewhere(self) -> bool:
        """Whether another tool made the runs."""
        return self.runs[0].is_elsewhere

    @property
    def settings(self) -> Mapping[str, str]:
        """Dotted key -> JSON of all settings that the numbers depend on."""
        return self.runs[0].settings


def require_comparable(runs: Sequence[Run], allow_different: Sequence[str] = ()) -> None:
    """Refuse runs whose numbers do not measure the same thing.

    Args:
        runs: at least one.
        allow_different: of `DIFFERENCES_ALLOWED`.

    Raises:
        ConfigError: names the first difference and both runs.

    """
    if unknown := set(allow_different) - set(DIFFERENCES_ALLOWED):
        found, allowed = ", ".join(sorted(unknown)), ", ".join(DIFFERENCES_ALLOWED)
        raise ConfigError(f"--allow-different: found {found}, allowed: {allowed}")
    first, *others = sorted(runs, key=lambda run: not run.is_finished)
    terms = comparable_terms(first)
    for run in others:
        for key, value in comparable_terms(run).items():
            if value != terms.get(key, value) and key not in allow_different:
                found = f"{_shown(terms[key])} in {first.folder}, {_shown(value)} in {run.folder}"
                way = f", or --allow-different {key}" if key in DIFFERENCES_ALLOWED else ""
                raise ConfigError(f"not comparable, {key}: found {found}; allowed: the same in all runs{way}")


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Return the groups in the order of their first runs, each run by seed, with labels that differ."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    same = [sorted(group, key=lambda run: run.seed) for group in members.values()]
    labels = _labels([group[0] for group in same])
    return [Group(label=label, runs=group) for label, group in zip(labels, same, strict=True)]


def differing_keys(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys that do not have the same value in all settings, in the config's order."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def short_key(key: str) -> str:
    """Return the end of a dotted key that no other setting ends in, e.g. `retained_ratio`, `layers.kind`."""
    parts = key.split(".")
    ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
    others = [f".{other}" for other in config_keys() if other != key]
    return next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), key)


def short_value(value: str | None) -> str:
    """Return a setting's JSON as people read it: no quotes, of a path its end."""
    if value is None or value == "null":
        return "not set"
    plain = json.loads(value)
    return plain.rstrip("/").rpartition("/")[2] if isinstance(plain, str) else value


def comparable_terms(run: Run) -> dict[str, Any]:
    """Return what must be the same in runs that are compared: metric, data, and when they were evaluated.

    An unfinished run does not know all of it, one of another tool nothing but its metric.
    """
    if run.is_elsewhere:
        return {"metric": run.result["metric"]}
    task = {key: value for key, value in run.settings.items() if key.startswith("task.") and key != "task.metrics"}
    terms = {
        "metric": run.result["metric"],
        **task,
        "evaluation examples": run.result.get("num_eval_examples"),
        "rounds": _planned_rounds(run),
    }
    return {key: value for key, value in terms.items() if value is not None}


def _planned_rounds(run: Run) -> int | None:
    if not run.is_finished:
        return json.loads(run.settings.get("federated.rounds", "null"))
    return run.result.get("stopped", {}).get("planned_rounds", run.result["rounds"])


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return a label for each run: its method where methods differ, and the fewest settings that tell it apart."""
    methods = [run.result["method"] for run in runs]
    several = len(set(methods)) > 1
    words = [[method] if several else [] for method in methods]
    for method in set(methods):
        alike = [index for index, other in enumerate(methods) if other == method]
        settings = {index: runs[index].settings for index in alike}
        keys = differing_keys(list(settings.values()))
        while (num_parts := _num_parts(words, settings, ())) < len(alike):
            key = max(keys, key=lambda key: _num_parts(words, settings, (key,)))
            shorts = {index: short_value(setting.get(key)) for index, setting in settings.items()}
            is_enough = len({(*words[index], shorts[index]) for index in alike}) > num_parts
            for index, setting in settings.items():
                words[index].append(f"{short_key(key)}={shorts[index] if is_enough else setting.get(key)}")
    return [", ".join(each) or method for each, method in zip(words, methods, strict=True)]


def _num_parts(words: Sequence[Sequence[str]], settings: Mapping[int, Mapping[str, str]], keys: Sequence[str]) -> int:
    """Return how many runs could be told apart by their words so far and the values of more keys."""
    return len({(*words[index], *(setting.get(key) for key in keys)) for index, setting in settings.items()})


def _shown(value: Any) -> str:
    return str(value).strip('"')
