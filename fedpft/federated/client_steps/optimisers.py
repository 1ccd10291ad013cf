"""The optimisers of local steps, as torch computes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fedpft.federated.client_steps.base import PlainStep, Rates, Start


@dataclass(frozen=True, kw_only=True)
class AdamW(PlainStep):
    """`torch.optim.AdamW`."""

    rates: Rates
    weight_decay: float

    def begin(self, start: Start) -> list[Tensor]:
        """See `ClientStep`."""
        return [torch.zeros_like(start.adapter) for _ in range(2)]

    @torch.no_grad()
    def __call__(
        self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor], steps_done: int, factor: float
    ) -> None:
        """See `ClientStep`."""
        for columns, rate in self.rates:
            means, squares = ([moment[:, columns]] for moment in memory[:2])
            adamw(
                [values[:, columns]], [gradients[:, columns]], means, squares, [], [torch.tensor(float(steps_done))],
                amsgrad=False, beta1=0.9, beta2=0.999, lr=rate * factor, weight_decay=self.weight_decay, eps=1e-8,
                maximize=False,
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SGD(PlainStep):
    """`torch.optim.SGD`: weight decay is a part of the gradient, and momentum sums gradients without a factor."""

    rates: Rates
    weight_decay: float
    momentum: float = 0.0

    def begin(self, start: Start) -> list[Tensor]:
        """See `ClientStep`."""
        return [torch.zeros_like(start.adapter)] if self.momentum else []

    @torch.no_grad()
    def __call__(
        self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor], steps_done: int, factor: float
    ) -> None:
        """See `ClientStep`."""
        for columns, rate in self.rates:
            step = gradients[:, columns]
            if self.weight_decay:
                step = step.add(values[:, columns], alpha=self.weight_decay)
            if self.momentum:
                step = memory[0][:, columns].mul_(self.momentum).add_(step)
            values[:, columns].add_(step, alpha=-rate * factor)
