"""Which clients take part in a round, who of them is simulated to be absent or late, and at which learning rate."""

import math
import types
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedpft.config import FederatedConfig
from fedpft.seeding import numpy_rng

Cohort = Mapping[int, int]
"""client_id -> how often it was drawn (more than once only with replacement), in client-id order."""


@dataclass(frozen=True, kw_only=True)
class Attendance:
    """What becomes of the clients drawn for a round; every one is in exactly one field, by id in ascending order."""

    cohort: Cohort
    """Those who train."""
    unavailable: tuple[int, ...] = ()
    """Absent for the whole round."""
    stragglers: tuple[int, ...] = ()
    """Past the deadline, or after enough others; their work would be thrown away, so they do not train."""
    candidates: tuple[int, ...] = ()
    """Of whom `power_of_choice` chose all of the above."""

    @property
    def begun(self) -> set[int]:
        """All clients that begin the round, also those who will be too late."""
        return {*self.cohort, *self.stragglers}

    @property
    def is_empty(self) -> bool:
        """Whether nobody was drawn, which `poisson` may do."""
        return not (self.cohort or self.unavailable or self.stragglers)

    def without(self, absent: Collection[int]) -> "Attendance":
        """Return it as if these clients had not been drawn; a round with stragglers would have kept others for them."""
        cohort = {client: number for client, number in self.cohort.items() if client not in absent}
        return replace(self, cohort=cohort, unavailable=tuple(c for c in self.unavailable if c not in absent))


def draw_attendance(
    config: FederatedConfig,
    sizes: np.ndarray,
    seed: int,
    round_index: int,
    losses: Mapping[int, float] = types.MappingProxyType({}),
) -> Attendance:
    """Draw a round's clients and simulate who of them comes and finishes.

    A function of its arguments; without dropout, over-selection and deadline the cohort is what was sampled.

    Args:
        config: how.
        sizes: as in :func:`sample_cohort`.
        seed: of all draws.
        round_index: from 1.
        losses: for `power_of_choice`, see :func:`choose_by_loss`.

    """
    wanted = len(sizes) if config.sampling in ("full", "poisson") else config.clients_per_round
    num_draws = math.ceil(config.clients_per_round * config.over_selection - 1e-9)  # 10 * 1.1 is a little above 11
    rng, candidates = numpy_rng(seed, "cohort", round_index), tuple[int, ...]()
    if config.sampling == "power_of_choice":
        candidates = draw_candidates(sizes, config.drawn_candidates, rng)
        drawn: Cohort = dict.fromkeys(choose_by_loss(candidates, losses, num_draws), 1)
    else:
        drawn = sample_cohort(config.sampling, sizes, num_draws, rng)
    times = {client: finishing_time(config, int(sizes[client]), seed, round_index, client) for client in drawn}
    found = attend(drawn, times, num_wanted=wanted, deadline=config.deadline)
    return replace(found, candidates=tuple(sorted(candidates)))


def finishing_time(config: FederatedConfig, num_examples: int, seed: int, round_index: int, client_id: int) -> float:
    """Return when a client would finish, in simulated time; infinity when it is unavailable.

    Unit: one example, trained on once, at the median speed. `num_examples * local_epochs * exp(speed_sigma * z)`, `z`
    standard normal; client and round have draws of their own, which no setting changes.
    """
    rng = numpy_rng(seed, "attendance", round_index, client_id)
    available = rng.random() >= config.dropout_ratio
    factor = math.exp(config.speed_sigma * rng.standard_normal())
    return num_examples * config.local_epochs * factor if available else math.inf


def attend(drawn: Cohort, times: Mapping[int, float], *, num_wanted: int, deadline: float | None) -> Attendance:
    """Keep the first `num_wanted` draws that finish by the deadline; clients that finish together go by id.

    A client that was drawn several times trains once and finishes with all its draws; the last one to be kept keeps as
    many as there is room for.
    """
    last = math.inf if deadline is None else deadline
    in_time = sorted(
        (times[client], client) for client in drawn if math.isfinite(times[client]) and times[client] <= last
    )
    kept = Counter([client for _, client in in_time for _ in range(drawn[client])][:num_wanted])
    unavailable = tuple(sorted(client for client in drawn if math.isinf(times[client])))
    stragglers = tuple(sorted(set(drawn) - set(kept) - set(unavailable)))
    return Attendance(cohort=dict(sorted(kept.items())), unavailable=unavailable, stragglers=stragglers)


def sample_cohort(
    kind: Literal["uniform", "md", "full", "poisson"],
    sizes: np.ndarray,
    clients_per_round: int,
    rng: np.random.Generator,
) -> Cohort:
    """Draw this round's clients.

    Args:
        kind: `uniform` without replacement; `md` by data volume with replacement; `full`: everyone; `poisson`: each
            by itself with probability `clients_per_round / num_clients`, so perhaps nobody.
        sizes: (num_clients,) examples of each client.
        clients_per_round: number of draws; of `poisson` the expected one; ignored by `full`.
        rng: the round's own generator.

    """
    num_clients = len(sizes)
    if kind == "full":
        drawn = np.arange(num_clients)
    elif kind == "uniform":
        drawn = rng.choice(num_clients, size=clients_per_round, replace=False)
    elif kind == "poisson":
        drawn = np.flatnonzero(rng.random(num_clients) < clients_per_round / num_clients)
    else:
        drawn = rng.choice(num_clients, size=clients_per_round, replace=True, p=sizes / sizes.sum())
    client_ids, times = np.unique(drawn, return_counts=True)
    return dict(zip(client_ids.tolist(), times.tolist(), strict=True))


def draw_candidates(sizes: np.ndarray, num_candidates: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw different clients by data volume, in the order of the draws; `sizes` as in :func:`sample_cohort`."""
    drawn = rng.choice(len(sizes), size=num_candidates, replace=False, p=sizes / sizes.sum())
    return tuple(drawn.tolist())


def choose_by_loss(candidates: Sequence[int], losses: Mapping[int, float], num_chosen: int) -> list[int]:
    """Return the candidates with the highest losses, by id: `rpow-d` of Cho et al. 2020 (arXiv 2010.01243).

    Args:
        candidates: different clients; of equal losses those that come first are chosen.
        losses: mean training loss of each client the last time that it trained, which came with its update. So it is
            that of an older adapter, costs neither a pass over data nor a message, and does not depend on where clients
            run. A client without one never trained; its loss counts as infinite.
        num_chosen: at most the candidates.

    """
    by_loss = sorted(candidates, key=lambda client: -losses.get(client, math.inf))  # stable
    return sorted(by_loss[:num_chosen])


def longest_first(client_ids: Iterable[int], sizes: np.ndarray) -> list[int]:
    """Return clients by their number of examples, the most first, equal ones by id; `sizes` as above.

    The order in which clients start, so that none of the long ones is left when the others are done, and in which their
    updates are summed. What clients cost is not measured for it: the sum's bits would depend on the measurement.
    """
    return sorted(client_ids, key=lambda client: (-int(sizes[client]), client))


def round_lr(
    schedule: Literal["constant", "exponential", "inverse", "linear"],
    lr: float,
    *,
    round_index: int,
    num_rounds: int,
    decay: float,
) -> float:
    """Return the clients' learning rate in a round, `round_index` from 1 to `num_rounds`.

    `linear` goes from `lr` in equal steps to `lr / num_rounds` in the last round (zero would be the one after), without
    the skipped and repeated values of the authors' code (README, difference 8).
    """
    rounds_done = round_index - 1
    factors = {
        "constant": 1.0,
        "exponential": decay**rounds_done,
        "inverse": 1.0 / (rounds_done + 1),
        "linear": 1.0 - rounds_done / num_rounds,
    }
    return lr * factors[schedule]
