"""Which clients take part in a round, and at which learning rate."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

Cohort = Mapping[int, int]
"""client_id -> how often it was drawn (more than once only with replacement), in client-id order."""


def sample_cohort(
    kind: Literal["uniform", "md", "full"], sizes: np.ndarray, clients_per_round: int, rng: np.random.Generator
) -> Cohort:
    """Draw this round's clients.

    Args:
        kind: `uniform` without replacement; `md` by data volume with replacement; `full`: everyone.
        sizes: (num_clients,) examples of each client.
        clients_per_round: number of draws; ignored by `full`.
        rng: the round's own generator.

    """
    num_clients = len(sizes)
    if kind == "full":
        drawn = np.arange(num_clients)
    elif kind == "uniform":
        drawn = rng.choice(num_clients, size=clients_per_round, replace=False)
    else:
        drawn = rng.choice(num_clients, size=clients_per_round, replace=True, p=sizes / sizes.sum())
    client_ids, times = np.unique(drawn, return_counts=True)
    return dict(zip(client_ids.tolist(), times.tolist(), strict=True))


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
