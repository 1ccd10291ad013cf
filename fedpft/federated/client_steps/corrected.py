"""Local steps that know of the other clients: FedProx, SCAFFOLD, FedNova.

Legend: `x` the adapter that clients are sent, `y` a client's own, `P` its numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpft.federated.client_steps.base import End, PlainStep, Rates, Start
from fedpft.federated.client_steps.optimisers import SGD, AdamW
from fedpft.federated.local_schedule import normaliser

VARIATE = "variate"
"""Name of SCAFFOLD's array: of the server's, `c`, and of a client's own, `c_i`."""


@dataclass(frozen=True, kw_only=True)
class Prox(PlainStep):
    """FedProx (Li et al. 2020, eq. 2): the loss plus `mu / 2 * ||y - x||^2`, minimised by any optimiser.

    The term is a part of the objective, so that its gradient, `mu * (y - x)`, is clipped with the loss's.
    """

    optimiser: AdamW | SGD
    mu: float

    def begin(self, start: Start) -> list[Tensor]:
        """See `ClientStep`."""
        return [*self.optimiser.begin(start), start.adapter.clone()]

    @torch.no_grad()
    def add_own(self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor]) -> None:
        """See `ClientStep`."""
        for columns, _ in self.optimiser.rates:
            gradients[:, columns].add_(values[:, columns] - memory[-1][:, columns], alpha=self.mu)

    def __call__(
        self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor], steps_done: int, factor: float
    ) -> None:
        """See `ClientStep`."""
        self.optimiser(values, gradients, memory, steps_done, factor)


@dataclass(frozen=True, kw_only=True)
class Scaffold(PlainStep):
    """SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II).

    Every step is `y -= lr * (g_i(y) - c_i + c)`, and at the end `c_i+ = c_i - c + (x - y) / (K lr)` over the `K` steps.
    Where the rate changes, the sum of all steps' rates stands for `K lr`: `c_i+` is the mean of the client's gradients,
    weighted by their rates. The gradient is the clipped one, weight decay included; the correction is not clipped.
    """

    rates: Rates
    weight_decay: float

    def begin(self, start: Start) -> list[Tensor]:
        """See `ClientStep`."""
        return [start.shared.get(VARIATE, torch.zeros_like(start.adapter)) - _own_variate(start)]

    @torch.no_grad()
    def __call__(
        self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor], steps_done: int, factor: float
    ) -> None:
        """See `ClientStep`."""
        plain = SGD(rates=self.rates, weight_decay=self.weight_decay)
        plain(values, gradients + memory[0], (), steps_done, factor)

    @torch.no_grad()
    def end(self, start: Start, values: Tensor, memory: Sequence[Tensor], factors: Sequence[float]) -> End:
        """See `ClientStep`."""
        own = _own_variate(start).clone()
        for columns, rate in self.rates:
            if whole := rate * sum(factors):
                own[columns] = (start.adapter[columns] - values[columns]) / whole - memory[0][columns]
        return End(adapter=values, own={VARIATE: own})


@dataclass(frozen=True, kw_only=True)
class FedNova:
    """FedNova (Wang et al. 2020): local SGD whose update is divided by how far that client's steps go.

    With gradients `g_k`, a client moves by `x - y = lr * sum_k a_k g_k`, and `a = sum_k a_k` (`normaliser`) is its
    number of steps, more with momentum. The paper's server makes the step `tau * sum_i p_i (y_i - x) / a_i`, with
    `tau = sum_i p_i a_i` over the cohort (`mean_normaliser`). As `sum_i p_i = 1`, this is the weighted mean of
    `x + tau / a_i * (y_i - x)`: which is what a client sends, so that the mean, whatever streams it, is FedNova's.
    `tau` only scales the step; it is that of all clients that were drawn, and one that is dropped changes nothing in
    the others' updates.
    """

    sgd: SGD
    tau: float

    def begin(self, start: Start) -> list[Tensor]:
        """See `ClientStep`."""
        return self.sgd.begin(start)

    def add_own(self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor]) -> None:
        """Add nothing."""

    def __call__(
        self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor], steps_done: int, factor: float
    ) -> None:
        """See `ClientStep`."""
        self.sgd(values, gradients, memory, steps_done, factor)

    @torch.no_grad()
    def end(self, start: Start, values: Tensor, memory: Sequence[Tensor], factors: Sequence[float]) -> End:
        """See `ClientStep`."""
        ratio = self.tau / normaliser(factors, self.sgd.momentum)
        adapter = values if ratio == 1 else start.adapter + ratio * (values - start.adapter)
        return End(adapter=adapter, own={})


def _own_variate(start: Start) -> Tensor:
    return start.own.get(VARIATE, torch.zeros_like(start.adapter))
