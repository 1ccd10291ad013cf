"""What a few seeds can say: means with intervals, paired tests, and verdicts in words.

Intervals are two-sided, 95 %, by Student's t. A group is tested against the baseline over their common seeds: equal
seeds mean equal partitions and cohorts, so that pairs take out what both share. P values of several groups are
corrected by Holm's procedure (Scandinavian Journal of Statistics 6, 1979). That two groups are not distinguishable does
not say that they are the same: that is tested by two one-sided tests against a margin (TOST; Schuirmann, Journal of
Pharmacokinetics and Biopharmaceutics 15, 1987).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from fedpft.report.intervals import CONFIDENCE, half_interval


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds."""

    n: int
    mean: float
    sd: float | None = None
    """Standard deviation over seeds (n - 1); None with one seed, as are `low` and `high`."""
    low: float | None = None
    high: float | None = None
    """The 95 % interval of the mean."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A group minus the baseline, over common seeds."""

    n: int
    """Common seeds."""
    mean: float | None = None
    """None without a common seed."""
    low: float | None = None
    high: float | None = None
    """The 95 % interval; None with fewer than two common seeds, or if all differences are equal: no sign of noise."""
    p: float | None = None
    """Of the paired t-test; None where there is no interval."""
    p_holm: float | None = None
    """Corrected for all groups that were tested."""
    p_same: float | None = None
    """That the difference is at least the margin, by TOST; None without a margin or an interval."""
    p_same_holm: float | None = None
    """Corrected."""

    @property
    def is_same(self) -> bool:
        """Whether the groups were shown to differ by less than the margin."""
        return self.p_same_holm is not None and self.p_same_holm < 1 - CONFIDENCE

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval excludes 0 and the corrected test agrees."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, standard deviation and interval of at least one value."""
    n, mean, half = len(values), fmean(values), half_interval(values)
    if half is None:
        return Estimate(n=n, mean=mean)
    return Estimate(n=n, mean=mean, sd=stdev(values), low=mean - half, high=mean + half)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], margin: float | None = None
) -> Difference:
    """Return the difference of two groups, each seed -> value; not yet corrected for other groups.

    Args:
        values: of the group.
        baseline: of the baseline.
        margin: difference, in the metric's own unit, below which they are called the same; None: not tested.

    """
    from scipy.stats import ttest_1samp, ttest_rel  # with the first comparison

    seeds = sorted(values.keys() & baseline.keys())
    differences = [values[seed] - baseline[seed] for seed in seeds]
    if not differences:
        return Difference(n=0)
    found = estimate(differences)
    if found.sd is None or found.sd <= 1e-12 * max(map(abs, differences), default=0.0):
        return Difference(n=found.n, mean=found.mean)
    p = float(ttest_rel([values[seed] for seed in seeds], [baseline[seed] for seed in seeds]).pvalue)
    same = None
    if margin is not None:
        sides = ((-margin, "greater"), (margin, "less"))
        same = max(float(ttest_1samp(differences, end, alternative=side).pvalue) for end, side in sides)
    return Difference(
        n=found.n, mean=found.mean, low=found.low, high=found.high, p=p, p_holm=p, p_same=same, p_same_holm=same
    )


def holm(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """Return the differences with p values corrected by Holm's procedure, of each kind of test for itself."""
    different = _corrected({label: each.p for label, each in differences.items()})
    same = _corrected({label: each.p_same for label, each in differences.items()})
    return {
        label: replace(each, p_holm=different.get(label), p_same_holm=same.get(label))
        for label, each in differences.items()
    }


def _corrected(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return label -> corrected p of those that have one."""
    tested = sorted((p, label) for label, p in values.items() if p is not None)
    corrected, largest = {}, 0.0
    for rank, (p, label) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[label] = largest
    return corrected


def binomial_error(accuracy: float, num_examples: int) -> float:
    """Return the standard error of one accuracy that comes from the evaluation set's size alone."""
    return math.sqrt(accuracy * (1 - accuracy) / num_examples)
