"""Which neurons a neuron-level alignment updates: those that the downstream task uses least."""

import torch
from torch import Tensor


def average_percentage_of_zeros(zeros: Tensor, positions: int) -> Tensor:
    """Return APoZ, (N,) float64 in [0, 1]: the fraction of positions at which each neuron was inactive."""
    if positions <= 0:
        raise ValueError("APoZ needs at least one real token position; none of the cohort's clients reported any")
    return zeros.double() / positions


def least_used(apoz: Tensor, update_ratio: float) -> Tensor:
    """Return a (N,) bool mask of the `update_ratio` of neurons with the highest APoZ; of ties the lower index wins."""
    num_updated = max(1, round(update_ratio * len(apoz)))
    chosen = torch.sort(apoz, descending=True, stable=True).indices[:num_updated]
    return torch.zeros(len(apoz), dtype=torch.bool).index_fill(0, chosen, True)
