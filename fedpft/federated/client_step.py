"""What clients do with the gradients of their batches: pure functions on the adapters of several, each as if alone.

Legend: `k` clients that make a step, `P` numbers of an adapter in the order of `FlatAdapter.values`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class ClientStep(Protocol):
    """A rule for one step. It keeps nothing: what a client remembers between steps is in `moments`."""

    num_moments: ClassVar[int]
    """How many numbers a client remembers for each weight; zero at the start."""

    def __call__(self, values: Tensor, gradients: Tensor, moments: Sequence[Tensor], steps_done: int) -> None:
        """Change values and moments in place.

        Args:
            values: (k, P) float32; a row may depend on nothing but its own in all arguments.
            gradients: (k, P).
            moments: `num_moments` of (k, P).
            steps_done: by each of these clients in this round.

        """


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW as torch computes it, with a learning rate for some columns each."""

    rates: tuple[tuple[slice, float], ...]
    """Columns and their rate; the others stay."""
    weight_decay: float
    num_moments: ClassVar[int] = 2

    @torch.no_grad()
    def __call__(self, values: Tensor, gradients: Tensor, moments: Sequence[Tensor], steps_done: int) -> None:
        """See `ClientStep`."""
        for columns, rate in self.rates:
            means, squares = ([moment[:, columns]] for moment in moments)
            adamw(
                [values[:, columns]], [gradients[:, columns]], means, squares, [], [torch.tensor(float(steps_done))],
                amsgrad=False, beta1=0.9, beta2=0.999, lr=rate, weight_decay=self.weight_decay, eps=1e-8,
                maximize=False,
            )  # fmt: skip


@torch.no_grad()
def clip_norms(gradients: Tensor, segments: Sequence[slice], max_norm: float) -> None:
    """Scale down each client's gradient whose norm is above `max_norm`, in place; as `clip_grad_norm_` for one.

    Args:
        gradients: (k, P); what is not finite stays so.
        segments: columns of each tensor that is tuned.
        max_norm: of all these columns.

    """
    norms = torch.stack([torch.linalg.vector_norm(gradients[:, segment], dim=1) for segment in segments], dim=1)
    factors = max_norm / (torch.linalg.vector_norm(norms, dim=1) + 1e-6)
    gradients.mul_(factors.clamp(max=1.0)[:, None])
