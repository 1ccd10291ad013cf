"""H-TIES, the aggregation of FedProxy (Fan et al., ACL 2026): updates that pull apart do not cancel each other.

As TIES-merging (Yadav et al. 2023, arXiv 2306.01708) does for models: trim, elect a sign, take the mean of those that
have it; what an update keeps, and its weight, depend on how much it is like the others. Of clients k, j with updates u:

    S_kj = cosine of u_k and u_j           h_k = 1 - mean_j max(S_kj, 0)       w = softmax_k sum_j |S_kj|
    u_k keeps the largest keep - 0.2 norm(h_k) of its P numbers,   norm: from 0 for the smallest h to 1 for the largest.

A number is the weighted mean of those with the dominant sign, if their mass `sum w |u|` is at least 1.1 times the other
sign's; else 0. The paper's `keep` (r0) is a setting here. Legend: `n` updates, `P` numbers of each.
"""

import numpy as np

SPREAD = 0.2
"""Of the part that is kept, between the update most like the others and the least."""

DOMINANCE = 1.1
"""By which the mass of one sign must exceed the other's."""

ROUNDING = 1e-9
"""Updates whose h differ by less are equally like the others, as any two are."""


def h_ties(updates: np.ndarray, keep: float) -> np.ndarray:
    """Return the aggregate, (P,) float64, of updates, (n, P) float32."""
    alike = cosines(updates)
    apart = 1 - np.maximum(alike, 0).mean(axis=1)
    weights = np.exp(np.abs(alike).sum(axis=1) - np.abs(alike).sum(axis=1).max())
    weights /= weights.sum()
    width = np.ptp(apart)
    shares = keep - SPREAD * ((apart - apart.min()) / width if width > ROUNDING else np.zeros(len(apart)))
    sums, masses = (np.zeros((2, updates.shape[1])) for _ in range(2))
    for update, weight, share in zip(updates, weights, shares, strict=True):
        kept = trimmed(update, share)
        for sign, side in enumerate((kept > 0, kept < 0)):
            sums[sign, side] += weight * kept[side]
            masses[sign, side] += weight
    sizes = np.abs(sums)
    dominant = np.argmax(sizes, axis=0)[None]
    size, other = (np.take_along_axis(sizes, which, axis=0)[0] for which in (dominant, 1 - dominant))
    total, mass = (np.take_along_axis(values, dominant, axis=0)[0] for values in (sums, masses))
    return np.where(size >= DOMINANCE * other, total / np.where(mass > 0, mass, 1), 0.0)


def cosines(updates: np.ndarray) -> np.ndarray:
    """Return the cosine of each two updates, (n, n) float64; of one without length 0, also with itself."""
    products = np.array([[np.dot(a.astype(np.float64), b) for b in updates] for a in updates])
    norms = np.sqrt(np.diagonal(products))
    lengths = np.where(norms > 0, norms, 1)
    return products / lengths[:, None] / lengths


def trimmed(update: np.ndarray, share: float) -> np.ndarray:
    """Return an update, (P,) float64, in which all but a share of its largest numbers is 0; of equal ones all stay."""
    sizes, count = np.abs(update), max(1, round(share * len(update)))
    return np.where(sizes >= np.partition(sizes, -count)[-count], update, 0.0).astype(np.float64)
