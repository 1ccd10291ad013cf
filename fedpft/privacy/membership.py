"""PURE: how well an attacker tells examples that were trained on from others, by a score of each."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

FALSE_POSITIVES = 0.01
"""At so few false accusations the attack is also judged: what counts is whom it is sure of (Carlini et al. 2022)."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How a threshold attack does on two sets of scores."""

    auc: float
    """Probability that a member's score is above a non-member's; 0.5: it knows nothing."""
    auc_error: float
    """Standard error of that."""
    tpr: float
    """Part of the members found at the threshold that accuses 1 % of the others."""
    num_members: int
    num_others: int


def attack(members: np.ndarray, others: np.ndarray) -> Attack:
    """Judge scores, (n,) and (m,), that are higher for what looks like a member; ties count half."""
    n, m = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))[:n]
    auc = (ranks.sum() - n * (n + 1) / 2) / (n * m)
    threshold = np.sort(others)[::-1][int(FALSE_POSITIVES * m)]  # of the others at most 1 % are above it
    return Attack(
        auc=float(auc),
        auc_error=_auc_error(float(auc), n, m),
        tpr=float((members > threshold).mean()),
        num_members=n,
        num_others=m,
    )


def _auc_error(auc: float, n: int, m: int) -> float:
    """Return the standard error by Hanley and McNeil (1982)."""
    of_members, of_others = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n - 1) * (of_members - auc**2) + (m - 1) * (of_others - auc**2)
    return math.sqrt(max(0.0, variance) / (n * m))
