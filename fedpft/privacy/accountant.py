"""PURE: what releases of noised sums cost in epsilon: a ledger of events, accounted by Google's `dp_accounting`.

Neighbours differ in one unit that is there or not (add or remove one), the relation of Poisson sampling. The privacy
loss distribution (PLD) gives the epsilon that counts: it composes numerically and is tight. Renyi's divergence (RDP)
stands beside it: looser, by another way, so that a fault in one shows.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal

from fedpft.config.checks import ConfigError

Accountant = Literal["pld", "rdp"]

MOST_EPSILON = 200.0
"""Above this, by RDP, the PLD is not asked: it takes gigabytes, and such a number protects nobody."""

LEAST_NOISE, MOST_NOISE = 0.05, 1e5
"""Between these the noise multiplier of a budget is sought."""

FINE, COARSE = 1e-4, 1e-3
"""Step in which losses are tabled, below and above an epsilon of 1: rounding is towards more loss, by at most 0.003."""

TOLERANCE = 1e-3
"""Of a noise multiplier that is solved for, relative; it errs towards more noise."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Releases of the sum over units that were drawn by Poisson sampling, with Gaussian noise."""

    rate: float
    """Probability with which each unit takes part, in (0, 1]."""
    noise_multiplier: float
    """Standard deviation of the noise over the most that one unit changes the sum by, above 0."""
    count: int = 1
    """How many such releases in a row."""


Ledger = Sequence[Mapping[str, Any]]
"""Events in order, as JSON: the `asdict` of each."""


def spend(ledger: Ledger, event: Event) -> list[dict[str, Any]]:
    """Return the ledger with one more event; equal ones in a row are one entry with their number."""
    entries = [dict(entry) for entry in ledger]
    if entries and replace(Event(**entries[-1]), count=event.count) == event:
        entries[-1]["count"] += event.count
        return entries
    return [*entries, asdict(event)]


def epsilon(ledger: Ledger, delta: float, accountant: Accountant = "pld") -> float:
    """Return the epsilon of all events together at this delta.

    Args:
        ledger: what was released so far; nothing costs nothing.
        delta: in (0, 1).
        accountant: `pld`, or `rdp`, which is also the answer of `pld` above `MOST_EPSILON`.

    Raises:
        ConfigError: `dp_accounting` is not installed.

    """
    events = tuple(Event(**entry) for entry in ledger)
    if not events:
        return 0.0
    by_rdp = _by_rdp(events, delta)
    if accountant == "rdp" or by_rdp > MOST_EPSILON:
        return by_rdp
    return _by_pld(events, delta, FINE if by_rdp < 1 else COARSE)


def dearest(events: Collection[Event], delta: float) -> Event:
    """Return the one of several events, all with the same noise, that costs most by itself.

    More releases cost more, and so does a higher rate: only an event that no other beats in both is asked for. RDP is
    above the PLD, so that the PLD is asked only where RDP may be above the most so far.
    """
    front: list[Event] = []
    for event in sorted(events, key=lambda event: (-event.rate, -event.count)):
        if not front or event.count > front[-1].count:
            front.append(event)
    if len(front) == 1:
        return front[0]
    found, most = front[0], 0.0
    bounds = {event: epsilon([asdict(event)], delta, "rdp") for event in front}
    for event in sorted(front, key=bounds.__getitem__, reverse=True):
        if bounds[event] <= most:
            break
        if (cost := epsilon([asdict(event)], delta)) > most:
            found, most = event, cost
    return found


def noise_for(target_epsilon: float, delta: float, events: Iterable[Event]) -> float:
    """Return the least noise multiplier with which each of several events stays within an epsilon by itself.

    Args:
        target_epsilon: the budget.
        delta: in (0, 1).
        events: rates and numbers of releases; their noise is not read.

    Raises:
        ConfigError: no noise does it, or `dp_accounting` is not installed.

    """
    asked = list(events)

    def fits(noise: float) -> bool:
        event = dearest([replace(event, noise_multiplier=noise) for event in asked], delta)
        return epsilon([asdict(event)], delta) <= target_epsilon

    low, high = LEAST_NOISE, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise ConfigError(f"privacy.target_epsilon: found {target_epsilon!r}, allowed: one that noise can reach")
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def most_releases(target_epsilon: float, delta: float, event: Event, most: int) -> int:
    """Return how many releases like this one, up to `most`, stay within an epsilon."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        fits = epsilon([asdict(replace(event, count=middle))], delta) <= target_epsilon
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


@lru_cache(maxsize=4096)
def _by_rdp(events: tuple[Event, ...], delta: float) -> float:
    library = _library()
    accountant = import_module("dp_accounting.rdp").RdpAccountant()
    with _quiet():
        for event in events:
            gaussian = library.GaussianDpEvent(event.noise_multiplier)
            accountant.compose(library.PoissonSampledDpEvent(event.rate, gaussian), event.count)
        return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=4096)
def _by_pld(events: tuple[Event, ...], delta: float, interval: float) -> float:
    first, *others = (
        _losses(event.rate, event.noise_multiplier, interval).self_compose(event.count) for event in events
    )
    for other in others:
        first = first.compose(other)
    return float(first.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _losses(rate: float, noise_multiplier: float, interval: float) -> Any:
    """Return one release's privacy loss distribution, of adding a unit and of removing one."""
    _library()
    distributions = import_module("dp_accounting.pld.privacy_loss_distribution")
    return distributions.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=rate, value_discretization_interval=interval
    )


def _library() -> Any:
    try:
        return import_module("dp_accounting")
    except ImportError:
        message = "found a run that needs dp-accounting, which is not installed"
        raise ConfigError(f"privacy.kind: {message}, allowed: none, or pip install 'fedpft[privacy]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the screen which of Renyi's orders did not converge: those that did give a bound."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
