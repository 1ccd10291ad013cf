"""The rules of local steps by `federated.client.kind`, and those of others.

A rule of others is a class with the protocol `ClientStep`, called with (settings, plan, rates) as this package's are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpft.config.plugins import blamed, make_part
from fedpft.federated.client_steps.base import ClientStep, End, Rates, Start
from fedpft.federated.client_steps.corrected import FedNova, Prox, Scaffold
from fedpft.federated.client_steps.optimisers import SGD, AdamW
from fedpft.federated.messages import LocalSettings, RoundPlan


def _optimiser(settings: LocalSettings, rates: Rates) -> AdamW | SGD:
    if settings.client.base == "adamw":
        return AdamW(rates=rates, weight_decay=settings.weight_decay)
    return SGD(rates=rates, weight_decay=settings.weight_decay, momentum=settings.client.momentum)


def _fednova(settings: LocalSettings, plan: RoundPlan, rates: Rates) -> ClientStep:
    sgd = SGD(rates=rates, weight_decay=settings.weight_decay, momentum=settings.client.momentum)
    return FedNova(sgd=sgd, tau=plan.tau)


MAKERS: Mapping[str, Callable[[LocalSettings, RoundPlan, Rates], ClientStep]] = {
    "adamw": lambda settings, plan, rates: _optimiser(settings, rates),
    "sgd": lambda settings, plan, rates: _optimiser(settings, rates),
    "prox": lambda settings, plan, rates: Prox(optimiser=_optimiser(settings, rates), mu=settings.client.mu),
    "scaffold": lambda settings, plan, rates: Scaffold(rates=rates, weight_decay=settings.weight_decay),
    "fednova": _fednova,
}
"""`federated.client.kind` -> (settings, plan, rates) -> the rule for a round."""


def client_step(settings: LocalSettings, plan: RoundPlan, rates: Rates) -> ClientStep:
    """Return the rule that the settings ask for.

    Raises:
        ConfigError: one of others that cannot be imported or made.

    """
    kind = settings.client.kind
    if not settings.client.is_own:
        return MAKERS[kind](settings, plan, rates)
    return Watched(rule=make_part("client_step", kind, settings, plan, rates), name=kind)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A rule of others; what it raises is one line with its name."""

    rule: ClientStep
    name: str

    def begin(self, start: Start) -> list[Tensor]:
        """See `ClientStep`."""
        with blamed("client_step", self.name):
            return self.rule.begin(start)

    def add_own(self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor]) -> None:
        """See `ClientStep`."""
        with blamed("client_step", self.name):
            self.rule.add_own(values, gradients, memory)

    def __call__(
        self, values: Tensor, gradients: Tensor, memory: Sequence[Tensor], steps_done: int, factor: float
    ) -> None:
        """See `ClientStep`."""
        with blamed("client_step", self.name), torch.no_grad():
            self.rule(values, gradients, memory, steps_done, factor)

    def end(self, start: Start, values: Tensor, memory: Sequence[Tensor], factors: Sequence[float]) -> End:
        """See `ClientStep`; a state has nobody who would keep it."""
        with blamed("client_step", self.name), torch.no_grad():
            end = self.rule.end(start, values, memory, factors)
            if end.own or end.adapter.shape != values.shape:
                what = f"{list(end.own)} and an adapter of shape {tuple(end.adapter.shape)}"
                raise ValueError(f"it sends {what}, expected no state and shape {tuple(values.shape)}")
            return end
