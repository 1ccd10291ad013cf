"""The rules of local steps by `federated.client.kind`."""

from collections.abc import Callable, Mapping

from fedpft.federated.client_steps.base import ClientStep, Rates
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


CLIENT_STEPS: Mapping[str, Callable[[LocalSettings, RoundPlan, Rates], ClientStep]] = {
    "adamw": lambda settings, plan, rates: _optimiser(settings, rates),
    "sgd": lambda settings, plan, rates: _optimiser(settings, rates),
    "prox": lambda settings, plan, rates: Prox(optimiser=_optimiser(settings, rates), mu=settings.client.mu),
    "scaffold": lambda settings, plan, rates: Scaffold(rates=rates, weight_decay=settings.weight_decay),
    "fednova": _fednova,
}
"""`federated.client.kind` -> (settings, plan, rates) -> the rule for a round."""


def client_step(settings: LocalSettings, plan: RoundPlan, rates: Rates) -> ClientStep:
    """Return the rule that the settings ask for."""
    return CLIENT_STEPS[settings.client.kind](settings, plan, rates)
