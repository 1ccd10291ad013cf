"""PURE: what adversaries send in place of an update. Legend: `n` honest updates, `P` numbers of an adapter.

Updates are float64, adapter sent minus adapter received.
"""

import numpy as np


def sign_flip(own: np.ndarray, scale: float) -> np.ndarray:
    """Return minus `scale` times the update, (P,), that the client would have sent."""
    return -scale * own


def gaussian(size: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise of standard deviation `scale` in place of an update, (P,)."""
    return rng.normal(0.0, scale, size)


def alie(honest: np.ndarray, scale: float) -> np.ndarray:
    """Return the mean of the honest updates, (n, P), plus `scale` sample standard deviations, coordinate by coordinate.

    A Little Is Enough (Baruch et al. 2019, arXiv 1902.06156): hidden in the spread of the others. Of one honest update
    the standard deviation is 0.
    """
    return honest.mean(axis=0) + scale * _spread(honest)


def inner_product(honest: np.ndarray, scale: float) -> np.ndarray:
    """Return minus `scale` times the mean of the honest updates, (n, P) (Xie et al. 2019, arXiv 1903.03936)."""
    return -scale * honest.mean(axis=0)


def min_max(honest: np.ndarray) -> np.ndarray:
    """Return the farthest point from the mean of the honest updates, (n, P), that still looks like one of them.

    `mean - gamma * standard deviation` with the largest gamma for which no honest update is farther away than the two
    that are farthest apart (Min-Max of Shejwalkar and Houmansadr, NDSS 2021). They search gamma by halving; it is the
    least of n roots of quadratic equations.
    """
    mean, direction = honest.mean(axis=0), -_spread(honest)
    length = direction @ direction
    if length == 0:
        return mean
    largest = squared_distances(honest).max()
    offsets = mean - honest  # (n, P)
    slope, rest = offsets @ direction, (offsets**2).sum(axis=1) - largest
    gamma = ((np.sqrt(np.maximum(slope**2 - length * rest, 0)) - slope) / length).min()
    return mean + gamma * direction


def squared_distances(vectors: np.ndarray) -> np.ndarray:
    """Return (n, n) squared distances, one row at a time: never more than a few copies of `vectors` are held."""
    return np.array([((vectors - vector) ** 2).sum(axis=1) for vector in vectors])


def _spread(honest: np.ndarray) -> np.ndarray:
    return honest.std(axis=0, ddof=1) if len(honest) > 1 else np.zeros(honest.shape[1])
