"""PURE: differential privacy of single examples, as one run has it: DP-SGD in the clients, an account for each of them.

What a client sends is private as it leaves, so that everything that comes of it is free: other clients, aggregators,
the server's optimiser. An example is one client's, so the run costs it what its client's steps cost, and what counts is
the client that has spent most. Which clients are drawn, and how many examples each has, is taken to be public: the
number decides the rate and the steps. All clients that begin a round have spent it, also those that are late or fail.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from fedpft.config import ConfigError, PrivacyConfig
from fedpft.config.checks import require
from fedpft.config.federated import FederatedConfig
from fedpft.privacy.accountant import Event, dearest, epsilon, noise_for
from fedpft.privacy.dp_sgd import ExampleNoise
from fedpft.privacy.guarantee import CANARY_LENGTH, HOPELESS, PrivacyState, cost_of, why_over


@dataclass(frozen=True, kw_only=True)
class ExampleLevel:
    """The guarantee that a run is made with."""

    settings: PrivacyConfig
    local: ExampleNoise
    """What each client does, with the noise multiplier of every step."""
    events: tuple[Event, ...]
    """By client id: the releases of one round, a step each."""
    rounds: int
    cohort_size: int

    @classmethod
    def of(
        cls,
        settings: PrivacyConfig,
        federated: FederatedConfig,
        sizes: np.ndarray,
        noise_multiplier: float | None = None,
    ) -> "ExampleLevel":
        """Return a run's guarantee; without a noise multiplier from before it is the settings', or solved for.

        It is solved for as if every client took part in all rounds.

        Args:
            settings: of privacy.
            federated: the run's.
            sizes: (num_clients,) examples of each client.
            noise_multiplier: from before.

        Raises:
            ConfigError: a budget that not even one round keeps to, or a delta that would give examples away.

        """
        most = int(sizes.max())
        allowed = f"a number below 1 / {most}, the examples of the largest client: one could be given away whole"
        require(settings.delta < 1 / most, "privacy.delta", settings.delta, allowed)
        target, noise = settings.target_epsilon, noise_multiplier or settings.noise_multiplier
        batch_size = federated.batch_size * federated.accumulate
        local = ExampleNoise(clip=settings.clip, noise_multiplier=noise or 1.0, batch_size=batch_size)
        events = _events(local, sizes, federated.local_epochs)
        if noise is None:
            assert target is not None, "the config asks for one of the two"
            whole = [replace(event, count=event.count * federated.rounds) for event in set(events)]
            noise = noise_for(target, settings.delta, whole)
        made = cls(
            settings=settings,
            local=replace(local, noise_multiplier=noise),
            events=tuple(replace(event, noise_multiplier=noise) for event in events),
            rounds=federated.rounds,
            cohort_size=federated.cohort_size,
        )
        if target is not None and (least := made._after(1)) > target:
            allowed = f"null or at least {least:.3g}, what one round costs with privacy.noise_multiplier = {noise:g}"
            raise ConfigError(f"privacy.target_epsilon: found {target!r}, allowed: {allowed}")
        return made

    def start(self) -> dict[str, Any]:
        """See `Guarantee`; `rounds` has how many each client began, by its id: the ledger, as `events` has the rest."""
        return {"noise_multiplier": self.local.noise_multiplier, "clip": self.local.clip, "rounds": {}}

    def spent(self, state: PrivacyState, clients: Collection[int]) -> PrivacyState:
        """See `Guarantee`."""
        begun = Counter(state["rounds"]) + Counter(map(str, clients))
        return {**state, "rounds": dict(sorted(begun.items(), key=lambda entry: int(entry[0])))}

    def epsilon(self, state: PrivacyState) -> float:
        """See `Guarantee`; of the client that has spent most."""
        return self._epsilon(self._releases(state["rounds"]))

    def affords(self, state: PrivacyState, clients: Collection[int]) -> bool:
        """See `Guarantee`."""
        target = self.settings.target_epsilon
        return target is None or self._next_epsilon(state, clients) <= target

    def why_over(self, state: PrivacyState, clients: Collection[int]) -> str:
        """See `Guarantee`."""
        return why_over(self.settings, self._next_epsilon(state, clients))

    def summary(self, state: PrivacyState) -> dict[str, Any]:
        """See `Guarantee`; under `privacy.strict` without what tells the size of a client."""
        releases = self._releases(state["rounds"])
        worst = [asdict(dearest(releases, self.settings.delta))] if releases else []
        told = self._about() | cost_of(worst, self.settings) | {"clip": self.local.clip}
        return told if self.settings.strict else told | {"releases": sum(entry["count"] for entry in worst)}

    def forecast(self, num_parameters: int) -> dict[str, Any]:
        """See `Guarantee`; of a client that takes part in every round, the one that spends most."""
        rounds = self.rounds
        if (target := self.settings.target_epsilon) is not None:
            rounds = bisect_right(range(1, rounds + 1), target, key=self._after)
        shown = sorted({1, *(math.ceil(rounds * part / 8) for part in range(1, 9))})
        about = self._about()
        return {
            **about,
            "sampling": f"{about['sampling']}; of a client that is in every round",
            "delta": self.settings.delta,
            "rounds": rounds,
            "epsilon_by_round": {count: self._after(count) for count in shown},
            "noise_ratio": self.noise_ratio(num_parameters),
        }

    def warnings(self, num_parameters: int) -> list[str]:
        """See `Guarantee`; the noise of a round's clients is averaged."""
        ratio = self.noise_ratio(num_parameters)
        if ratio / math.sqrt(self.cohort_size) <= HOPELESS:
            return []
        return [
            f"privacy: the noise of a client's step is {ratio:.3g} times as long as its longest mean gradient can be: "
            f"with {self.cohort_size} clients a round hardly anything is learned; a larger federated.batch_size, or "
            "federated.accumulate, fewer rounds, lora.rank or a higher budget lower it"
        ]

    def noise_ratio(self, num_parameters: int) -> float:
        """Return the norm of the noise on a step's mean gradient over the clip, the longest that this mean can be."""
        return self.local.noise_multiplier * math.sqrt(num_parameters) / self.local.batch_size

    def dearest(self, state: PrivacyState) -> Event:
        """See `Guarantee`."""
        return dearest(self._releases(state["rounds"]), self.settings.delta)

    def observed(self, is_drawn: bool, rng: np.random.Generator) -> tuple[float, float]:
        """See `Guarantee`."""
        clip, gradients = self.local.clip, torch.zeros(int(is_drawn), 2)
        gradients[:, 0] = CANARY_LENGTH * clip
        total, _ = self.local.clipped_sum(gradients, [slice(0, 2)])
        return (float(total[0]) + float(self.local.noise(2, rng)[0])) / clip, self.local.noise_multiplier

    def _releases(self, rounds: Mapping[str, int]) -> list[Event]:
        """Return what was released of each client, given how many rounds each began."""
        events = ((self.events[int(client)], count) for client, count in rounds.items())
        return [replace(event, count=event.count * count) for event, count in events]

    def _next_epsilon(self, state: PrivacyState, clients: Collection[int]) -> float:
        rounds = self.spent(state, clients)["rounds"]
        return self._epsilon(self._releases({str(client): rounds[str(client)] for client in clients}))

    def _after(self, rounds: int) -> float:
        """Return what the client spends that spends most, if all are in so many rounds."""
        return self._epsilon(replace(event, count=event.count * rounds) for event in set(self.events))

    def _epsilon(self, releases: Iterable[Event]) -> float:
        events = list(releases)
        return epsilon([asdict(dearest(events, self.settings.delta))], self.settings.delta) if events else 0.0

    def _about(self) -> dict[str, Any]:
        sampling = "poisson within a client, rate B/n"
        if not self.settings.strict:
            sampling += f" = {self.local.batch_size}/n, at most {max(event.rate for event in self.events):.3g}"
        return {
            "unit": "example",
            "neighbours": "one example of one client, there or not (add or remove one)",
            "sampling": sampling,
            "noise_multiplier": self.local.noise_multiplier,
        }


def _events(local: ExampleNoise, sizes: np.ndarray, num_epochs: int) -> list[Event]:
    """Return a round's releases of each client; of one without examples, as of one with a single example."""
    numbers = np.maximum(sizes, 1).tolist()
    return [
        Event(rate=local.rate(n), noise_multiplier=local.noise_multiplier, count=local.num_steps(n, num_epochs))
        for n in numbers
    ]
