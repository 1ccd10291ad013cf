"""What clients do with the gradients of their batches: pure functions on the adapters of several, each as if alone.

Legend: `k` clients that make a step, `P` numbers of an adapter in the order of `FlatAdapter.values`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Start:
    """What one client begins a round with."""

    adapter: Tensor
    """(P,), the adapter that it was sent."""
    shared: Mapping[str, Tensor]
    """(P,) each: what every client of the round was sent besides."""
    own: Mapping[str, Tensor]
    """(P,) each: what :meth:`ClientStep.end` gave when this client trained last; empty the first time."""


@dataclass(frozen=True, kw_only=True)
class End:
    """What one client sends back."""

    adapter: Tensor
    """(P,)."""
    own: Mapping[str, Tensor]
    """(P,) each: what it wants to find again."""


class ClientStep(Protocol):
    """How a client's gradients become its update, in the columns that are tuned; the other columns stay.

    It keeps nothing itself: what a client remembers from step to step is in `memory`, one row for each client.
    """

    def begin(self, start: Start) -> list[Tensor]:
        """Return what a client remembers before its first step, (P,) each; always as many."""

    def add_own(self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor]) -> None:
        """Add to the loss's gradients, in place, those of the client's own objective, before they are clipped."""

    def __call__(
        self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor], steps_done: int, factor: float
    ) -> None:
        """Make a step: change values and memory in place.

        Args:
            values: (k, P) float32; a row may depend on nothing but its own in all arguments.
            gradients: (k, P), clipped.
            memory: of (k, P) each.
            steps_done: by each of these clients in this round.
            factor: of the rates in this step.

        """

    def end(self, start: Start, values: Tensor, memory: Sequence[Tensor], factors: Sequence[float]) -> End:
        """Return what a client sends.

        Args:
            start: what it began with.
            values: (P,), its adapter now.
            memory: (P,) each.
            factors: of the rates in all its steps.

        """


Rates = Sequence[tuple[slice, float]]
"""Each stretch of columns that is tuned, and its learning rate."""


class PlainStep:
    """What the steps have in common that add no objective of their own and send their adapter as it is."""

    def add_own(self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor]) -> None:
        """Add nothing."""

    def end(self, start: Start, values: Tensor, memory: Sequence[Tensor], factors: Sequence[float]) -> End:
        """See `ClientStep`."""
        return End(adapter=values, own={})


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
