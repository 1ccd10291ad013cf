"""PURE: differential privacy of whole clients, as one run has it: its noise, its budget, and what is said of both."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpft.config import ConfigError, PrivacyConfig
from fedpft.config.federated import FederatedConfig
from fedpft.models.activations import ActivationCounts
from fedpft.privacy.accountant import Event, epsilon, most_releases, noise_for, spend
from fedpft.privacy.guarantee import CANARY_LENGTH, HOPELESS, PrivacyState, cost_of, why_over
from fedpft.privacy.mechanism import DEFAULT_COUNT_NOISE, NoiseShares, NoisySum, next_clip, share_noise

PRECISION_OF_RATES = 10**6
"""In so many parts noised activation rates are handed on."""


@dataclass(frozen=True, kw_only=True)
class ClientLevel:
    """The guarantee that a run is made with."""

    settings: PrivacyConfig
    rate: float
    """Probability with which a client takes part in a round, public."""
    cohort_size: int
    """How many come on average: the public divisor."""
    rounds: int
    noise_multiplier: float
    """z, of everything that a round releases together."""
    seed: int = 0
    """Of the noise, with the round."""
    local: None = None
    """Clients add no noise."""

    @classmethod
    def of(
        cls, settings: PrivacyConfig, federated: FederatedConfig, noise_multiplier: float | None = None, seed: int = 0
    ) -> "ClientLevel":
        """Return a run's guarantee; without a noise multiplier from before it is the settings', or solved for.

        Raises:
            ConfigError: a budget that not even one round keeps to, or settings that cannot be together.

        """
        rate = federated.cohort_size / federated.num_clients
        target, noise = settings.target_epsilon, noise_multiplier or settings.noise_multiplier
        if noise is None:
            assert target is not None, "the config asks for one of the two"
            noise = noise_for(target, settings.delta, [Event(rate=rate, noise_multiplier=1.0, count=federated.rounds)])
        made = cls(
            settings=settings,
            rate=rate,
            cohort_size=federated.cohort_size,
            rounds=federated.rounds,
            noise_multiplier=noise,
            seed=seed,
        )
        made.shares(counting=False)
        if not made.affords(made.start()):
            least = made._next_epsilon(made.start())
            allowed = f"null or at least {least:.3g}, what one round costs with privacy.noise_multiplier = {noise:g}"
            raise ConfigError(f"privacy.target_epsilon: found {target!r}, allowed: {allowed}")
        return made

    @property
    def event(self) -> Event:
        """What a round costs, also one to which nobody came: its noise is released as well."""
        return Event(rate=self.rate, noise_multiplier=self.noise_multiplier)

    @property
    def scale(self) -> float:
        """Of the noise: 1, or less where that of a larger cohort is simulated."""
        return self.cohort_size / (self.settings.noise_cohort_size or self.cohort_size)

    def start(self) -> dict[str, Any]:
        """See `Guarantee`; with the `clip` of the next round and the `ledger`."""
        return {"noise_multiplier": self.noise_multiplier, "clip": self.settings.clip, "ledger": []}

    def affords(self, state: PrivacyState, clients: Collection[int] = ()) -> bool:
        """See `Guarantee`; what a round costs does not depend on who comes."""
        target = self.settings.target_epsilon
        return target is None or self._next_epsilon(state) <= target

    def why_over(self, state: PrivacyState, clients: Collection[int] = ()) -> str:
        """See `Guarantee`."""
        return why_over(self.settings, self._next_epsilon(state))

    def spent(self, state: PrivacyState, clients: Collection[int] = ()) -> PrivacyState:
        """See `Guarantee`."""
        return {**state, "ledger": spend(state["ledger"], self.event)}

    def epsilon(self, state: PrivacyState) -> float:
        """See `Guarantee`."""
        return epsilon(state["ledger"], self.settings.delta)

    def dearest(self, state: PrivacyState) -> Event:
        """See `Guarantee`: all releases, which are alike."""
        (entry,) = state["ledger"]
        return Event(**entry)

    def observed(self, is_drawn: bool, rng: np.random.Generator) -> tuple[float, float]:
        """See `Guarantee`."""
        clip = self.settings.clip
        release = RoundRelease(self, clip, np.zeros(2))
        if is_drawn:
            release.add(np.array([CANARY_LENGTH * clip, 0.0]), None)
        along = float(release.finish(rng).adapter[0]) * self.cohort_size / clip
        return along, self.shares(counting=False).updates * self.scale

    def _next_epsilon(self, state: PrivacyState) -> float:
        return epsilon(spend(state["ledger"], self.event), self.settings.delta)

    def shares(self, *, counting: bool) -> NoiseShares:
        """Return the noise of a round's parts; in a `counting` one clients send neuron counts, too."""
        count_noise = None
        if self.settings.clipping == "adaptive":
            cohort = self.settings.noise_cohort_size or self.cohort_size
            count_noise = self.settings.clip_count_noise or max(DEFAULT_COUNT_NOISE * cohort, self.noise_multiplier)
        share = self.settings.counts_share if counting else None
        return share_noise(self.noise_multiplier, count_noise=count_noise, counts_share=share)

    def noise_ratio(self, num_parameters: int) -> float:
        """Return the norm of the noise on a mean update over the clip, the longest that this mean can be."""
        shares = self.shares(counting=False)
        return shares.updates * self.scale * math.sqrt(num_parameters) / self.cohort_size

    def summary(self, state: PrivacyState) -> dict[str, Any]:
        """See `Guarantee`."""
        summary: dict[str, Any] = {
            **cost_of(state["ledger"], self.settings),
            "unit": "client",
            "neighbours": "one client with all its data, there or not (add or remove one)",
            "sampling": f"poisson, rate {self.rate:g}" if self.rate < 1 else "none, every client in every round",
            "noise_multiplier": self.noise_multiplier,
            "clip": state["clip"],
            "releases": sum(entry["count"] for entry in state["ledger"]),
        }
        if self.settings.noise_cohort_size is not None:
            summary["simulated_population"] = round(self.settings.noise_cohort_size / self.rate)
        return summary

    def forecast(self, num_parameters: int) -> dict[str, Any]:
        """See `Guarantee`."""
        delta, rounds = self.settings.delta, self.rounds
        if self.settings.target_epsilon is not None:
            rounds = most_releases(self.settings.target_epsilon, delta, self.event, rounds)
        shown = sorted({1, *(math.ceil(rounds * part / 8) for part in range(1, 9))})
        by_round = {count: epsilon(spend([], Event(**{**vars(self.event), "count": count})), delta) for count in shown}
        about = ("delta", "unit", "neighbours", "sampling", "noise_multiplier", "simulated_population")
        return {
            **{key: value for key, value in self.summary(self.start()).items() if key in about},
            "rounds": rounds,
            "epsilon_by_round": by_round,
            "noise_ratio": self.noise_ratio(num_parameters),
        }

    def warnings(self, num_parameters: int) -> list[str]:
        """See `Guarantee`."""
        lines, ratio = [], self.noise_ratio(num_parameters)
        if ratio > HOPELESS:
            lines.append(
                f"privacy: a round's noise is {ratio:.3g} times as long as the longest mean update can be: "
                f"with {self.cohort_size} clients a round hardly anything is learned; more clients, fewer rounds, "
                "lora.rank or a higher budget lower it"
            )
        if (cohort := self.settings.noise_cohort_size) is not None:
            lines.append(
                f"privacy.noise_cohort_size = {cohort} is a simulation: epsilon is that of a population of "
                f"{round(cohort / self.rate)} clients, and none of this run's"
            )
        return lines


class RoundRelease:
    """What a round with :class:`ClientLevel` takes from its clients, and the one thing that it lets out.

    Args:
        guarantee: the run's.
        clip: of this round.
        start: (P,) the adapter that clients began with.
        num_neurons: of each watched FFN, if clients count; None: they do not.

    """

    def __init__(
        self, guarantee: ClientLevel, clip: float, start: np.ndarray, num_neurons: tuple[int, ...] | None = None
    ) -> None:
        self._guarantee, self._start, self._num_neurons = guarantee, start.astype(np.float64), num_neurons
        self._updates = NoisySum(len(start), clip)
        self._shortness = NoisySum(1, 0.5)
        total = sum(num_neurons or ())
        self._rates = NoisySum(total, math.sqrt(total) / 2)
        self._shares = guarantee.shares(counting=num_neurons is not None)

    def add(self, adapter: np.ndarray, counts: ActivationCounts | None) -> None:
        """Take what a client sent: its adapter, (P,), and its counts if it was asked for them."""
        is_short = self._updates.add(adapter - self._start)
        self._shortness.add(np.array([0.5 if is_short else -0.5]))
        if self._num_neurons is not None:
            assert counts is not None, "every client counts when the plan says so"
            rates = [zeros / seen for zeros, seen in zip(counts.zeros, counts.positions, strict=True)]
            self._rates.add(np.concatenate(rates) - 0.5)

    def add_sum(self, update: np.ndarray, num_clients: int, num_short: int) -> None:
        """Take the sum of clipped updates, (P,) float64, of so many clients, so many of them shorter than the clip."""
        self._updates.add_sum(update, num_clients, num_short)
        self._shortness.add_sum(np.array([num_short - num_clients / 2]), num_clients, num_clients)

    def finish(self, rng: np.random.Generator) -> "Released":
        """Add the noise and divide by the expected number of clients."""
        guarantee, shares = self._guarantee, self._shares
        scale, cohort, clip = guarantee.scale, guarantee.cohort_size, self._updates.clip
        change = self._updates.release(scale * shares.updates, cohort, rng)
        record: dict[str, Any] = {"privacy/clip": clip}
        if shares.shortness is not None:
            part_short = 0.5 + float(self._shortness.release(scale * shares.shortness, cohort, rng)[0])
            settings = guarantee.settings
            clip = next_clip(clip, part_short, quantile=settings.clip_quantile, lr=settings.clip_lr)
            record["privacy/part_short"] = part_short
        counts = None
        if self._num_neurons is not None and shares.counts is not None:
            rates = 0.5 + self._rates.release(scale * shares.counts, cohort, rng)
            counts = _as_counts(rates, self._num_neurons)
        return Released(
            adapter=(self._start + change).astype(np.float32),
            counts=counts,
            next_clip=clip,
            record=record,
            num_clipped=self._updates.num_vectors - self._updates.num_short,
        )


@dataclass(frozen=True, kw_only=True)
class Released:
    """What came of a round; all but the last field may be known to everybody."""

    adapter: np.ndarray
    """(P,) float32: the next global adapter."""
    counts: ActivationCounts | None
    """Noised, as if of a million tokens; None: nobody counted."""
    next_clip: float
    record: Mapping[str, Any]
    """For the round's line."""
    num_clipped: int
    """Updates longer than the clip: only a simulation knows it."""


def _as_counts(rates: np.ndarray, num_neurons: tuple[int, ...]) -> ActivationCounts:
    whole = np.rint(np.clip(rates, 0, 1) * PRECISION_OF_RATES).astype(np.int64)
    ends = np.cumsum(num_neurons)[:-1]
    positions = np.full(len(num_neurons), PRECISION_OF_RATES, dtype=np.int64)
    return ActivationCounts(zeros=tuple(np.split(whole, ends)), positions=positions)
