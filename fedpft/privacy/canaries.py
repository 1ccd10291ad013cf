"""PURE: an empirical lower bound on epsilon, from canaries whose presence is guessed from what is released.

The whole mechanism runs as in a run, with the same clip, noise and rate, many times with and without a canary: a client
or an example, whichever is protected, whose update or gradient points in a direction that is known to the attacker, and
is far longer than the clip. The best attacker scores each release by its likelihood ratio. Whoever finds more than
epsilon allows has found a fault; what is found is a bound from below with 95 % confidence.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from fedpft.privacy.accountant import Event
from fedpft.privacy.guarantee import Guarantee

CONFIDENCE = 0.95
"""Of a bound."""


@dataclass(frozen=True, kw_only=True)
class CanaryBound:
    """What the canaries showed."""

    epsilon: float
    """With 95 % confidence the mechanism is no more private than this."""
    num_runs: int
    """With the canary, and as many without it."""


def canary_bound(guarantee: Guarantee, event: Event, *, num_runs: int, seed: int) -> CanaryBound:
    """Run the mechanism many times and bound its epsilon from below, at the guarantee's delta.

    Args:
        guarantee: a run's.
        event: the releases of a run.
        num_runs: with a canary; as many without.
        seed: of all draws.

    """
    rng = np.random.default_rng(seed)

    def released(is_there: bool) -> float:
        return sum(_score(guarantee, event.rate, is_there, rng) for _ in range(event.count))

    with_canary, without = (np.array([released(there) for _ in range(num_runs)]) for there in (True, False))
    return CanaryBound(epsilon=lower_bound(with_canary, without, guarantee.settings.delta), num_runs=num_runs)


def _score(guarantee: Guarantee, rate: float, is_there: bool, rng: np.random.Generator) -> float:
    """Return the log likelihood ratio, with the canary over without, of one release."""
    along, noise = guarantee.observed(is_there and rng.random() < rate, rng)
    ratio = math.exp(min(700.0, (2 * along - 1) / (2 * noise**2)))
    return math.log(1 - rate + rate * ratio)


def lower_bound(with_canary: np.ndarray, without: np.ndarray, delta: float) -> float:
    """Return the largest epsilon that scores, (n,) each, rule out, with 95 % confidence and both kinds of errors.

    One half of the scores chooses the threshold, the other half is counted, so that the choice costs no confidence.
    """
    half = len(with_canary) // 2
    thresholds = np.quantile(np.concatenate([with_canary[:half], without[:half]]), np.linspace(0.02, 0.98, 49))

    best, chosen = -math.inf, (0.0, True)
    for threshold in thresholds:
        for above in (True, False):
            value = _side(with_canary[:half], without[:half], threshold, delta, above=above)
            if value > best:
                best, chosen = value, (float(threshold), above)
    return max(0.0, _side(with_canary[half:], without[half:], chosen[0], delta, above=chosen[1]))


def _side(with_canary: np.ndarray, without: np.ndarray, threshold: float, delta: float, *, above: bool) -> float:
    """Return the bound of one threshold: scores above it tell of the canary, or those below it of its absence."""
    if above:
        hits, errors = int((with_canary > threshold).sum()), int((without > threshold).sum())
    else:
        hits, errors = int((without <= threshold).sum()), int((with_canary <= threshold).sum())
    level, n = (1 - CONFIDENCE) / 2, len(with_canary)
    rate = beta.ppf(level, hits, n - hits + 1) if hits else 0.0  # Clopper and Pearson
    wrong = beta.ppf(1 - level, errors + 1, n - errors)
    return math.log((rate - delta) / wrong) if rate > delta else -math.inf
