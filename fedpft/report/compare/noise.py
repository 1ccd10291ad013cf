"""PURE: the noise between seeds, and how small a difference so many seeds can show.

Groups share one noise: their variances over seeds are pooled, weighted by degrees of freedom. Tests are of pairs, so
what they can show follows from the pooled variance of differences over common seeds, which pairing may make smaller.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import variance

from fedpft.report.intervals import CONFIDENCE
from fedpft.report.scores import metric_change

POWER = 0.8
"""Chance to find a difference of the size that is told."""
_SEEDS = (2, 3, 5, 10, 20)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much the primary metric varies from seed to seed, in the metric's own unit."""

    sd: float
    """Pooled standard deviation over seeds, within groups."""
    degrees: int
    """Its degrees of freedom: seeds - 1, summed over groups."""
    num_groups: int
    """With two seeds or more."""
    paired_sd: float | None
    """Of a group minus the baseline on the same seed, pooled; None where no pair has two common seeds."""
    paired_degrees: int
    shows: Mapping[int, float]
    """Seeds of each group -> the difference that a paired t-test finds with a chance of 80 %, before any correction
    for several comparisons. It rests on `paired_sd`, without one on that of two independent groups."""


def noise_floor(groups: Sequence[Mapping[int, float]], baseline: Mapping[int, float]) -> Noise | None:
    """Return the noise of groups, each seed -> value; None where no group has two seeds that differ.

    Args:
        groups: all of them; `baseline` may be among them.
        baseline: that of the tests.

    """
    sd, degrees, num_groups = _pooled([list(group.values()) for group in groups])
    if not sd:
        return None
    pairs = [
        [value - baseline[seed] for seed, value in group.items() if seed in baseline]
        for group in groups
        if group != baseline
    ]
    paired_sd, paired_degrees, _ = _pooled(pairs)
    of_pairs = paired_sd or math.sqrt(2) * sd
    used = sorted({len(group) for group in groups if len(group) > 1} | set(_SEEDS))
    shows = {n: of_pairs * detectable(n) for n in used}
    return Noise(
        sd=sd,
        degrees=degrees,
        num_groups=num_groups,
        paired_sd=paired_sd,
        paired_degrees=paired_degrees,
        shows=shows,
    )


@cache
def detectable(n: int) -> float:
    """Return the mean, in standard deviations, that a two-sided t-test of `n` values finds with a chance of `POWER`."""
    from scipy.optimize import brentq  # with the first comparison
    from scipy.special import stdtrit
    from scipy.stats import nct

    edge = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))

    def missing(shift: float) -> float:  # what is found with the wrong sign is too seldom to count
        return float(nct.sf(edge, n - 1, shift * math.sqrt(n))) - POWER

    return float(brentq(missing, 1e-3, 40.0))


def noise_line(noise: Noise, metric: str) -> str:
    """Return the noise in a sentence or two."""

    def size(value: float) -> str:
        return metric_change(value, metric).lstrip("+")

    pair = "" if noise.paired_sd is None else f", of a difference on the same seed {size(noise.paired_sd)}"
    told = ", ".join(f"{size(value)} with {n}" for n, value in noise.shows.items())
    return (
        f"Noise between seeds: SD {size(noise.sd)} (pooled over {noise.num_groups} group(s), {noise.degrees} degree(s) "
        f"of freedom){pair}. Seeds show, in 4 of 5 tries, a difference of: {told}"
    )


def _pooled(samples: Sequence[Sequence[float]]) -> tuple[float | None, int, int]:
    """Return pooled standard deviation, degrees of freedom and number of the samples with two values or more."""
    several = [sample for sample in samples if len(sample) > 1]
    degrees = sum(len(sample) - 1 for sample in several)
    if not degrees:
        return None, 0, 0
    squares = sum((len(sample) - 1) * variance(sample) for sample in several)
    largest = max(abs(value) for sample in several for value in sample)
    sd = math.sqrt(squares / degrees)
    return (sd if sd > 1e-12 * largest else 0.0), degrees, len(several)
