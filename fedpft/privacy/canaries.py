"""PURE: empirical lower bounds on epsilon, from canaries whose presence is guessed from what is released.

**Many runs of the mechanism** (`canary_bound`). The whole mechanism runs as in a run, with the same clip, noise and
rate, many times with and without a canary: a client or an example, whichever is protected, whose update or gradient
points in a direction that is known to the attacker, and is far longer than the clip. The best attacker scores each
release by its likelihood ratio. Whoever finds more than epsilon allows has found a fault; what is found is a bound from
below with 95 % confidence.

**One run of the training** (`one_run_bound`). Each of many canaries is in or out by a fair coin of its own. With
(epsilon, delta)-DP nobody guesses more of these coins than by randomised response, but with a probability that is
known.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

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


GUESSED = (1.0, 0.5, 0.25)
"""Which part of the canaries an attacker guesses, those of the highest and of the lowest scores: all are tried, and the
confidence is shared among them."""

_LARGEST_EPSILON = 50.0


@dataclass(frozen=True, kw_only=True)
class OneRunBound:
    """What the canaries of one run showed."""

    epsilon: float
    """With 95 % confidence the training is no more private than this."""
    num_guesses: int
    """Of the best of the attempts."""
    num_right: int
    """Of these."""
    num_canaries: int
    num_planted: int


def one_run_bound(scores: np.ndarray, planted: np.ndarray, delta: float) -> OneRunBound:
    """Return the largest epsilon that guesses by scores rule out with 95 % confidence.

    Args:
        scores: (n,), higher for what looks trained on.
        planted: (n,) bool, each by a fair coin.
        delta: of the guarantee; 0 without one.

    """
    order, attempts = np.argsort(scores, kind="stable"), list[tuple[float, int, int]]()
    for part in GUESSED:
        side = int(part * len(scores)) // 2
        right = int((~planted[order[:side]]).sum() + planted[order[len(order) - side :]].sum())
        level = (1 - CONFIDENCE) / len(GUESSED)
        attempts.append((ruled_out(len(scores), 2 * side, right, delta, level), 2 * side, right))
    epsilon, num_guesses, num_right = max(attempts, key=lambda attempt: attempt[0])
    return OneRunBound(
        epsilon=epsilon,
        num_guesses=num_guesses,
        num_right=num_right,
        num_canaries=len(scores),
        num_planted=int(planted.sum()),
    )


def ruled_out(num_canaries: int, num_guesses: int, num_right: int, delta: float, level: float) -> float:
    """Return the largest epsilon with which so many right guesses have at most this probability; 0: none."""
    if chance(num_canaries, num_guesses, num_right, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    while high - low > 1e-6:
        middle = (low + high) / 2
        if chance(num_canaries, num_guesses, num_right, middle, delta) <= level:
            low = middle
        else:
            high = middle
    return low


def chance(num_canaries: int, num_guesses: int, num_right: int, epsilon: float, delta: float) -> float:
    """Return a bound on the probability that at least so many guesses are right under (epsilon, delta)-DP.

    Theorem 5.2 of Steinke et al. 2023: randomised response, and what delta adds to it.
    """
    right = 1 / (1 + math.exp(-epsilon))
    by_luck = float(binom.sf(num_right - 1, num_guesses, right))
    fewer = np.cumsum(binom.pmf(num_right - np.arange(1, num_right + 1), num_guesses, right))
    more = float((fewer / np.arange(1, num_right + 1)).max()) if num_right else 0.0
    return min(1.0, by_luck + 2 * num_canaries * delta * more)
