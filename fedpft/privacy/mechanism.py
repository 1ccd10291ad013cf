"""PURE: a sum of clipped vectors with Gaussian noise, and what a round releases by it.

What a round releases is one Gaussian mechanism with the noise multiplier z, although it may have three parts: the
updates, how many of them were short (adaptive clipping), and neuron counts. Parts with multipliers z_1, z_2, ... have
together 1 / z^2 = sum 1 / z_i^2, so z is shared out among them, and the updates get what is left.

The noise is NumPy's, drawn from the run's seed, so that a run can be repeated. A deployment draws it from a secure
generator that nobody knows the state of, and on a grid (the last bits of floating-point noise tell something, Mironov
2012).
"""

import math
from dataclasses import dataclass

import numpy as np

from fedpft.config.checks import require

DEFAULT_COUNT_NOISE = 1 / 20
"""Standard deviation of the noise on the number of short updates, over a round's clients (Andrew et al. 2021)."""


class NoisySum:
    """Adds up vectors, each clipped as it comes; noise is added once, at the end. All in float64.

    Args:
        size: D.
        clip: L2 norm to which a longer vector is scaled down.

    """

    def __init__(self, size: int, clip: float) -> None:
        self.clip, self._sum = clip, np.zeros(size)
        self.num_short = self.num_vectors = 0
        """How many needed no clipping, and of how many."""

    def add(self, vector: np.ndarray) -> bool:
        """Take a vector (D,) of finite numbers; return whether it was no longer than the clip."""
        part, is_short = clipped(np.asarray(vector, dtype=np.float64), self.clip)
        self.add_sum(part, 1, int(is_short))
        return is_short

    def add_sum(self, total: np.ndarray, num_vectors: int, num_short: int) -> None:
        """Take the sum, (D,), of so many vectors that were clipped elsewhere."""
        self._sum += total
        self.num_vectors += num_vectors
        self.num_short += num_short

    def release(self, noise_multiplier: float, num_expected: float, rng: np.random.Generator) -> np.ndarray:
        """Return (sum + N(0, (noise_multiplier * clip)^2)) / num_expected, (D,); the number added plays no part."""
        noise = rng.standard_normal(len(self._sum))
        return (self._sum + noise_multiplier * self.clip * noise) / num_expected


def clipped(vector: np.ndarray, clip: float) -> tuple[np.ndarray, bool]:
    """Return a vector (D,) float64, scaled down to the norm `clip` if it is longer, and whether it was not."""
    norm = float(np.linalg.norm(vector))
    is_short = norm <= clip
    return (vector if is_short else vector * (clip / norm)), is_short


@dataclass(frozen=True, kw_only=True)
class NoiseShares:
    """The noise multiplier of each part of a release."""

    updates: float
    shortness: float | None
    """Of how many updates were short; None: not asked."""
    counts: float | None
    """Of neuron counts; None: not asked."""


def share_noise(z: float, *, count_noise: float | None, counts_share: float | None) -> NoiseShares:
    """Share a release's noise multiplier out among its parts.

    Args:
        z: of the whole release.
        count_noise: standard deviation of the noise on the number of short updates, to which a client adds plus or
            minus 1/2; None: it is not released.
        counts_share: of 1 / z^2, what neuron counts get; None: they are not released.

    Raises:
        ConfigError: nothing would be left for the updates.

    """
    shortness = None if count_noise is None else 2 * count_noise
    counts = None if counts_share is None else z / math.sqrt(counts_share)
    left = 1 / z**2 - sum(1 / part**2 for part in (shortness, counts) if part is not None)
    least = z / 2 / math.sqrt(1 - (counts_share or 0.0))
    require(left > 0, "privacy.clip_count_noise", count_noise, f"a number > {least:g}, what the noise multiplier takes")
    return NoiseShares(updates=1 / math.sqrt(left), shortness=shortness, counts=counts)


def next_clip(clip: float, part_short: float, *, quantile: float, lr: float) -> float:
    """Return the clip of the next round: geometric steps towards the quantile of the norms (Andrew et al. 2021)."""
    return clip * math.exp(-lr * (part_short - quantile))
