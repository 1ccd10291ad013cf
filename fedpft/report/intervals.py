"""PURE: how sure a mean over seeds is."""

from collections.abc import Sequence
from math import sqrt
from statistics import stdev

CONFIDENCE = 0.95


def half_interval(values: Sequence[float]) -> float | None:
    """Return h of the interval mean +- h by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # quantile of Student's t

    return float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * stdev(values) / sqrt(len(values))
