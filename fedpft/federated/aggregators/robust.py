"""Robust rules: what a minority of clients sends moves their result only so far. Pure functions on a round's updates.

Legend: `n` updates, `P` numbers of each, `f` bad ones to withstand. Updates are float32, results float64.
All clients count the same: a bad one could name any number of examples. Rules go through the numbers in blocks, so
that beside the updates they hold little.
"""

from collections.abc import Iterator

import numpy as np

from fedpft.federated.aggregators.base import Memory

BLOCK_BYTES = 2**23
"""Of the float64 copy of some columns that a rule works on at a time."""


def median(updates: np.ndarray) -> np.ndarray:
    """Return the median of each number (Yin et al. 2018); of two in the middle their mean."""
    return np.concatenate([np.median(block, axis=0) for block in _blocks(updates)])


def trimmed_mean(updates: np.ndarray, f: int) -> np.ndarray:
    """Return the mean of each number without its f smallest and f largest values (Yin et al. 2018)."""
    last = len(updates) - f
    return np.concatenate([np.sort(block, axis=0)[f:last].mean(axis=0) for block in _blocks(updates)])


def krum(updates: np.ndarray, f: int) -> np.ndarray:
    """Return the update with the least sum of squared distances to its n - f - 2 nearest (Blanchard et al. 2017)."""
    return updates[int(np.argmin(_krum_scores(square_distances(updates), f)))].astype(np.float64)


def multi_krum(updates: np.ndarray, f: int, num_selected: int | None = None) -> np.ndarray:
    """Return the mean of the `num_selected` updates with the best Krum scores, by default n - f."""
    scores = _krum_scores(square_distances(updates), f)
    best = np.sort(np.argsort(scores, kind="stable")[: num_selected or len(updates) - f])
    return np.concatenate([block[best].mean(axis=0) for block in _blocks(updates)])


def bulyan(updates: np.ndarray, f: int) -> np.ndarray:
    """Return the mean of each number's n - 4f values nearest to the median (El Mhamdi et al. 2018).

    Only n - 2f updates have values there: Krum chooses them one after the other, each among those that are left; of
    equal scores the first.
    """
    distances = square_distances(updates)
    left, chosen = list(range(len(updates))), []
    for _ in range(len(updates) - 2 * f):
        scores = _krum_scores(distances[np.ix_(left, left)], f)
        chosen.append(left.pop(int(np.argmin(scores))))
    num_kept, chosen = len(chosen) - 2 * f, sorted(chosen)
    means = []
    for block in _blocks(updates):
        values = block[chosen]
        gaps = np.abs(values - np.median(values, axis=0))
        nearest = np.argsort(gaps, axis=0, kind="stable")[:num_kept]
        means.append(np.take_along_axis(values, nearest, axis=0).mean(axis=0))
    return np.concatenate(means)


def geometric_median(updates: np.ndarray, iterations: int, smoothing: float) -> np.ndarray:
    """Return the point with the least sum of distances, by some of Weiszfeld's steps from 0 (Pillutla et al. 2022).

    A distance below `smoothing` counts as that.
    """
    point = np.zeros(updates.shape[1])
    for _ in range(iterations):
        weights = 1 / np.maximum(_distances(updates, point), smoothing)
        point = _combination(updates, weights / weights.sum())
    return point


def centered_clipping(updates: np.ndarray, centre: np.ndarray, norm: float, iterations: int) -> np.ndarray:
    """Return the centre, (P,), after some steps (Karimireddy et al. 2021).

    Each is by the mean of the updates' differences to it, which are scaled down to a norm.
    """
    for _ in range(iterations):
        distances = _distances(updates, centre)
        factors = np.minimum(1, norm / np.maximum(distances, np.finfo(np.float64).tiny)) / len(updates)
        centre = (1 - factors.sum()) * centre + _combination(updates, factors)
    return centre


def around_the_last(updates: np.ndarray, memory: Memory, norm: float, iterations: int) -> tuple[np.ndarray, Memory]:
    """Return centred clipping around the last round's result, and the result to remember; around 0 in the first."""
    centre = memory.get("centre", np.zeros(updates.shape[1]))
    centre = centered_clipping(updates, centre, norm, iterations)
    return centre, {"centre": centre}


def square_distances(updates: np.ndarray) -> np.ndarray:
    """Return (n, n) squared distances between updates, by their products in float64."""
    products = sum(block @ block.T for block in _blocks(updates))
    squares = np.diagonal(products)
    return np.maximum(squares[:, None] + squares - 2 * products, 0)


def _krum_scores(distances: np.ndarray, f: int) -> np.ndarray:
    """Return of each update the sum of its n - f - 2 least squared distances to others, of one at least."""
    num_others = max(1, len(distances) - f - 2)
    others = distances + np.diag(np.full(len(distances), np.inf))
    return np.partition(others, num_others - 1, axis=1)[:, :num_others].sum(axis=1)


def _distances(updates: np.ndarray, point: np.ndarray) -> np.ndarray:
    squares = np.zeros(len(updates))
    for columns in _columns(updates):
        difference = updates[:, columns] - point[columns]
        squares += np.einsum("np,np->n", difference, difference)
    return np.sqrt(squares)


def _combination(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.concatenate([weights @ block for block in _blocks(updates)])


def _blocks(updates: np.ndarray) -> Iterator[np.ndarray]:
    """Yield some columns at a time, in float64."""
    return (updates[:, columns].astype(np.float64) for columns in _columns(updates))


def _columns(updates: np.ndarray) -> Iterator[slice]:
    n, size = updates.shape
    step = max(1, BLOCK_BYTES // (8 * n))
    return (slice(first, first + step) for first in range(0, size, step))
