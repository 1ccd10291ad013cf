"""From folders of runs to what can be said of them: groups, statistics, prices, verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from fedpft.config import ConfigError
from fedpft.metrics.table import Goal, metric_row
from fedpft.report.clients import EXPECTED, View
from fedpft.report.compare.clients import client_spread
from fedpft.report.compare.costs import AXES, group_costs, pareto_front
from fedpft.report.compare.effects import Effect, setting_effects
from fedpft.report.compare.elsewhere import read_elsewhere
from fedpft.report.compare.groups import Group, differing_keys, group_runs, require_comparable, short_value
from fedpft.report.compare.noise import Noise, noise_floor
from fedpft.report.compare.runs import LeftOut, Run, read_runs
from fedpft.report.compare.statistics import (
    Difference,
    Estimate,
    binomial_error,
    estimate,
    holm,
    paired_difference,
)
from fedpft.report.scores import metric_change, metric_range, metric_value


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups, the best first, and what sets them apart; all mappings are by the groups' labels.

    Unfinished runs have curves, but no statistics: a group of nothing else has no estimate, and comes last.
    """

    metric: str
    goal: Goal
    baseline: str
    groups: Sequence[Group]
    order: Sequence[str]
    """Labels in the order of the groups' first runs: what colours follow, which stay while ranks change."""
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Difference]
    """Of every group with a finished run but the baseline."""
    costs: Mapping[str, Mapping[str, float]]
    """Label -> axis -> mean price."""
    left_out: Sequence[LeftOut]
    same_within: float | None = None
    """Difference of the metric below which groups are tested to be the same; None: they are not."""

    @property
    def axes(self) -> list[str]:
        """Keys of `AXES` that any group measured."""
        return [key for key in AXES if any(key in costs for costs in self.costs.values())]

    def client_spreads(self, view: View = EXPECTED) -> dict[str, dict[str, float]]:
        """Return label -> how accuracy spreads over clients, of the groups that have it."""
        spreads = {group.label: client_spread(group, view) for group in self.groups}
        return {label: spread for label, spread in spreads.items() if spread}

    def price(self, label: str, axis: str) -> str | None:
        """Return a group's price on an axis in words; None: not measured."""
        value, shown = self.costs[label].get(axis), AXES[axis].shown
        if value is None:
            return None
        return metric_change(value, self.metric) if shown is None else shown(value)

    def front(self, axis: str) -> list[str]:
        """Return the groups that are Pareto-optimal in metric and this price."""
        prices = {label: costs[axis] for label, costs in self.costs.items() if axis in costs}
        scores = {label: found.mean for label, found in self.estimates.items()}
        return pareto_front(prices, scores, (AXES[axis].goal, self.goal))

    @property
    def noise(self) -> Noise | None:
        """How much the metric varies between seeds; None where too few are finished to tell."""
        ours = [group.values for group in self.groups if not group.is_elsewhere]
        return noise_floor(ours, self._group(self.baseline).values)

    @property
    def effects(self) -> list[Effect] | None:
        """What each setting of a sweep does; see :func:`setting_effects`."""
        return setting_effects(self.groups)

    @property
    def num_unfinished(self) -> int:
        """Runs that do not count yet."""
        return sum(len(group.runs) - len(group.finished) for group in self.groups)

    def setting_rows(self) -> list[tuple[str, list[str]]]:
        """Return the keys in which groups differ, each with every group's value."""
        keys = differing_keys([group.settings for group in self.groups if not group.is_elsewhere])
        return [(key, [_shown_setting(group, key) for group in self.groups]) for key in keys]

    def change(self, label: str) -> str:
        """Return a group's mean difference to the baseline; `baseline` for itself, nothing without common seeds."""
        if label == self.baseline:
            return "baseline"
        mean = self.differences[label].mean if label in self.differences else None
        return "" if mean is None else metric_change(mean, self.metric)

    def standing(self, label: str) -> Literal["better", "worse", "the same", "not distinguishable", "not comparable"]:
        """Return how a group stands against the baseline."""
        found = self.differences[label]
        if found.mean is None:
            return "not comparable"
        if not found.is_distinguishable:
            return "the same" if found.is_same else "not distinguishable"
        return "better" if (found.mean > 0) == (self.goal == "max") else "worse"

    def verdict(self, label: str) -> str:
        """Return in words how a group stands against the baseline."""
        found = self.differences[label]
        if found.mean is None:
            return f"{label}: not comparable with {self.baseline} seed by seed (no common seed)"
        unclear = f"{label} is not distinguishable from {self.baseline}"
        if self.same_within is not None:
            margin = metric_change(self.same_within, self.metric).lstrip("+")
            how = "and the same" if found.is_same else "but not shown to be the same"
            unclear += f", {how} within {margin}"
            if found.p_same_holm is not None:
                unclear += f" (TOST, Holm's p = {found.p_same_holm:.2g})"
        change = metric_change(found.mean, self.metric)
        if found.low is None or found.high is None:
            why = "one seed shows no noise" if found.n < 2 else "the same on every seed, which shows no noise"
            return f"{unclear} (n = {found.n}; {change}, {why})"
        interval = metric_range(found.low, found.high, self.metric)
        if not found.is_distinguishable:
            return f"{unclear} (n = {found.n} seeds; {change}, 95 % {interval}, Holm's p = {found.p_holm:.2g})"
        verb = "beats" if self.standing(label) == "better" else "loses to"
        size = metric_change(abs(found.mean), self.metric).lstrip("+")
        low, high = (found.low, found.high) if found.mean > 0 else (-found.high, -found.low)
        why = f"95 % {metric_range(low, high, self.metric)}, n = {found.n} seeds, Holm's p = {found.p_holm:.2g}"
        if found.is_same and self.same_within is not None:
            margin = metric_change(self.same_within, self.metric).lstrip("+")
            why += f"; by less than {margin}: TOST, Holm's p = {found.p_same_holm:.2g}"
        return f"{label} {verb} {self.baseline} by {size} ({why})"

    def score(self, label: str) -> str:
        """Return a group's metric with its interval, or what one run alone can say, or what there is so far."""
        found = self.estimates.get(label)
        if found is None:
            return f"{metric_value(_newest(self._group(label)), self.metric)} so far"
        mean = metric_value(found.mean, self.metric)
        if found.low is not None and found.high is not None:
            low, high = found.low, found.high
            if metric_row(self.metric).is_fraction:  # few seeds leave open more than there can be
                low, high = max(0.0, low), min(1.0, high)
            return f"{mean} [{metric_range(low, high, self.metric)}]"
        error = self.error_of_one_run(label)
        return mean if error is None else f"{mean} (one seed; ± {100 * error:.1f} points by the evaluation set's size)"

    def error_of_one_run(self, label: str) -> float | None:
        """Return the binomial standard error of a group with one seed; None for more seeds, another metric or tool."""
        found = self.estimates[label]
        if found.n > 1 or self.metric != "accuracy":
            return None
        (run,) = self._group(label).finished
        num_examples = run.result.get("num_eval_examples")
        return None if num_examples is None else binomial_error(found.mean, num_examples)

    def _group(self, label: str) -> Group:
        return next(group for group in self.groups if group.label == label)


def compare(
    folders: Sequence[Path],
    baseline: str | None = None,
    allow_different: Sequence[str] = (),
    same_within: float | None = None,
    wandb: Sequence[str] = (),
) -> Comparison:
    """Read runs and compare them.

    Args:
        folders: each a run's, or one with runs below it.
        baseline: a group's label or the folder of a run in it; None: the group of the first run.
        allow_different: what may differ all the same, of `groups.DIFFERENCES_ALLOWED`.
        same_within: also test whether groups are the same as the baseline but for less than this: points of a
            metric that is a fraction, of another one its own unit.
        wandb: `ENTITY/PROJECT/RUN_ID` of runs of other tools, which are compared by the metric of that name alone.

    Raises:
        ConfigError: nothing to compare, files that cannot be read, runs that are not comparable, no such baseline or
            margin.

    """
    runs, left_out = read_runs(folders)
    others, not_ours = read_elsewhere(wandb, runs[0])
    return compare_runs([*runs, *others], [*left_out, *not_ours], baseline, allow_different, same_within)


def compare_runs(
    runs: Sequence[Run],
    left_out: Sequence[LeftOut] = (),
    baseline: str | None = None,
    allow_different: Sequence[str] = (),
    same_within: float | None = None,
) -> Comparison:
    """Compare runs, finished and unfinished ones; see :func:`compare`."""
    require_comparable(runs, allow_different)
    groups = group_runs(runs)
    reference = _baseline(groups, baseline)
    counted = [group for group in groups if group.finished]
    estimates = {group.label: estimate(list(group.values.values())) for group in counted}
    others = [group for group in counted if group is not reference]
    margin = _margin(same_within, runs[0].result["metric"])
    goal: Goal = runs[0].result["metric_goal"]
    sign = -1 if goal == "max" else 1

    def rank(group: Group) -> tuple[bool, float]:
        return not group.finished, sign * _newest(group)

    return Comparison(
        metric=runs[0].result["metric"],
        goal=goal,
        baseline=reference.label,
        groups=sorted(groups, key=rank),
        order=[group.label for group in groups],
        estimates=estimates,
        differences=holm({group.label: paired_difference(group.values, reference.values, margin) for group in others}),
        same_within=margin,
        costs={group.label: {} if group.is_elsewhere else group_costs(group) for group in groups},
        left_out=left_out,
    )


def _shown_setting(group: Group, key: str) -> str:
    return "" if group.is_elsewhere else short_value(group.settings.get(key))


def _margin(same_within: float | None, metric: str) -> float | None:
    """Return the margin in the metric's own unit."""
    if same_within is None:
        return None
    if not 0 < same_within < math.inf:
        raise ConfigError(f"--same-within: found {same_within}, allowed: a number > 0")
    return same_within / 100 if metric_row(metric).is_fraction else same_within


def _newest(group: Group) -> float:
    """Return the mean over finished runs, or where there is none, over all of them so far."""
    return fmean(run.value for run in group.finished or group.runs)


def _baseline(groups: Sequence[Group], wanted: str | None) -> Group:
    if wanted is None:
        return next((group for group in groups if group.finished), groups[0])
    for group in groups:
        if group.label == wanted or any(run.folder in (Path(wanted), Path(wanted).resolve()) for run in group.runs):
            return group
    allowed = "; ".join(group.label for group in groups)
    raise ConfigError(f"--baseline: found {wanted!r}, allowed: the folder of a run, or {allowed}")
