"""Ridge regression from normal equations that are summed up batch by batch. Shapes: `N` features, `H` targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Candidates, relative to the features' mean energy; the one with the smallest held-out error is taken."""


class NormalEquations:
    """`X^T S X`, `X^T S Y` and the energy of `Y`, for features X with a last column of ones and diagonal weights S.

    Products of a batch are taken in the batch's precision, their sums in float64; memory does not grow with the data.
    """

    def __init__(self, num_features: int, num_targets: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.gram, self.cross = zeros(num_features + 1, num_features + 1), zeros(num_features + 1, num_targets)
        self.energy = zeros(num_targets)

    def add(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add rows: `features` (rows, N), `targets` (rows, H), `weights` (rows,), 1 by default."""
        x = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
        weighted = x if weights is None else x * weights[:, None]
        squares = targets.square() if weights is None else targets.square() * weights[:, None]
        self.gram += (weighted.T @ x).double()
        self.cross += (weighted.T @ targets).double()
        self.energy += squares.double().sum(dim=0)

    def error(self, solution: Tensor) -> Tensor:
        """Return (H,): the weighted squared error of a solution (N + 1, H) for each target."""
        fitted = solution * (self.gram @ solution - 2 * self.cross)
        return (self.energy + fitted.sum(dim=0)).clamp_min(0)


@dataclass(frozen=True)
class RidgeFit:
    """The chosen solution."""

    solution: Tensor
    """(N + 1, H) float64; the last row is the bias."""
    ridge: float
    relative_error: float
    """Held-out squared error over the targets' energy."""


def ridge_fit(
    fit: NormalEquations,
    held_out: NormalEquations,
    *,
    prior: Tensor,
    free: Tensor,
    target_scale: Tensor,
    ridges: Sequence[float] = RIDGES,
) -> RidgeFit:
    """Minimise `|S^(1/2) (X W - Y)|^2 + ridge |W - prior|^2` over the free rows of W; the bias is not shrunk.

    Args:
        fit, held_out: equations of disjoint data; the second chooses the ridge.
        prior: (N + 1, H): where W is pulled to, and the values of the rows that are not free.
        free: (N + 1,) bool.
        target_scale: (H,) how much an error of each target counts in that choice.

    """
    penalty = fit.gram.diagonal()[:-1].mean() * torch.ones_like(fit.gram[0])
    penalty[-1] = 0
    gram, penalty, prior = fit.gram[free][:, free], penalty[free], prior.double()
    gap = (fit.cross - fit.gram @ prior)[free]  # what the prior leaves unexplained
    scale = target_scale.double().square()
    energy = (held_out.energy * scale).sum()
    best: RidgeFit | None = None
    for ridge in ridges:
        solution = prior.clone()
        solution[free] += torch.linalg.solve(gram + torch.diag(ridge * penalty), gap)
        error = float((held_out.error(solution) * scale).sum() / energy)
        if best is None or error < best.relative_error:
            best = RidgeFit(solution, ridge, error)
    assert best is not None, "at least one ridge"
    return best
