"""What a run with differential privacy is made with, whatever the unit that it protects."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np

from fedpft.config import PrivacyConfig
from fedpft.privacy.accountant import Event, Ledger, epsilon
from fedpft.privacy.dp_sgd import ExampleNoise

HOPELESS = 10.0
"""Noise so many times as long as the longest possible mean: a run that learns has another proportion."""

CANARY_LENGTH = 1e3
"""Of what a canary adds, over the clip: what is not clipped gives itself away."""

PrivacyState = Mapping[str, Any]
"""`noise_multiplier`, and what was spent so far, as JSON: what the next round depends on."""


class Guarantee(Protocol):
    """A run's guarantee: its noise, its budget, and what is said of both."""

    @property
    def settings(self) -> PrivacyConfig:
        """The run's."""

    @property
    def local(self) -> ExampleNoise | None:
        """What clients do to their examples' gradients; None: nothing."""

    def start(self) -> dict[str, Any]:
        """Return the state before round 1."""

    def spent(self, state: PrivacyState, clients: Collection[int]) -> PrivacyState:
        """Return the state after a round that these clients began."""

    def epsilon(self, state: PrivacyState) -> float:
        """Return what was spent so far."""

    def affords(self, state: PrivacyState, clients: Collection[int]) -> bool:
        """Whether one more round, which these clients begin, stays within the budget."""

    def why_over(self, state: PrivacyState, clients: Collection[int]) -> str:
        """Return why that round is not run."""

    def summary(self, state: PrivacyState) -> dict[str, Any]:
        """Return the guarantee of what was released, for `result.json`: epsilon means nothing without the rest."""

    def forecast(self, num_parameters: int) -> dict[str, Any]:
        """Return what `plan` says before the run."""

    def warnings(self, num_parameters: int) -> list[str]:
        """Return lines about what a user should know before the run."""

    def dearest(self, state: PrivacyState) -> Event:
        """Return the releases that cost one unit most so far, of those that released something."""

    def observed(self, is_drawn: bool, rng: np.random.Generator) -> tuple[float, float]:
        """Run the mechanism once on a canary's data; return what is released along its direction, and the noise's std.

        In units of the clip: the canary, if it is drawn, adds 1.
        """


def cost_of(ledger: Ledger, settings: PrivacyConfig) -> dict[str, Any]:
    """Return what every guarantee says of its cost."""
    told = {
        "epsilon": epsilon(ledger, settings.delta),
        "delta": settings.delta,
        "accountant": "PLD (dp_accounting)",
        "epsilon_rdp": epsilon(ledger, settings.delta, "rdp"),
    }
    return told if settings.target_epsilon is None else told | {"target_epsilon": settings.target_epsilon}


def why_over(settings: PrivacyConfig, next_epsilon: float) -> str:
    """Return why a round that would raise epsilon so far is not run."""
    limit = f"privacy.target_epsilon = {settings.target_epsilon:g}"
    return f"the next would raise epsilon to {next_epsilon:.4g}, above {limit}"
