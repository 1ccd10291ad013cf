"""How many steps a client makes in a round, at which part of the round's learning rate, and how far they go."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedpft.config import ClientConfig, FederatedConfig


def num_steps(num_examples: int, *, batch_size: int, accumulate: int, num_epochs: int) -> int:
    """Return a client's steps in a round; an epoch's last batch and last step may be smaller ones."""
    return num_epochs * math.ceil(math.ceil(num_examples / batch_size) / accumulate)


def rate_factors(config: ClientConfig, num_steps: int) -> Sequence[float]:
    """Return the factor of the rate in each step.

    It grows over `warmup_steps` (w) as `(k + 1) / (w + 1)`, so that no step has none; then it falls from 1, in step w,
    to 0, which would be step `num_steps`: transformers' schedule for one step more, without its first, whose rate is 0.
    """
    return [_factor(config.schedule, step, num_steps, config.warmup_steps) for step in range(num_steps)]


def normaliser(factors: Sequence[float], momentum: float) -> float:
    """Return how far SGD's steps go if every gradient is 1, in units of the rate: the 1-norm of FedNova's `a_i`.

    Args:
        factors: of the rate in each step.
        momentum: of SGD.

    """
    velocity = distance = 0.0
    for factor in factors:
        velocity = momentum * velocity + 1
        distance += factor * velocity
    return distance


def mean_normaliser(config: FederatedConfig, cohort: Mapping[int, int], sizes: np.ndarray) -> float:
    """Return FedNova's `tau`: the mean of the cohort's normalisers, with the weights of the aggregate.

    Args:
        config: the run's.
        cohort: client_id -> how often it was drawn; at least one.
        sizes: (num_clients,) examples of each client.

    """
    total = weights = 0.0
    for client_id, times in cohort.items():
        size = int(sizes[client_id])
        steps = num_steps(
            size, batch_size=config.batch_size, accumulate=config.accumulate, num_epochs=config.local_epochs
        )
        weight = times * (size if config.aggregation == "weighted" else 1.0)
        total += weight * normaliser(rate_factors(config.client, steps), config.client.momentum)
        weights += weight
    return total / weights


def _factor(schedule: str, step: int, num_steps: int, warmup_steps: int) -> float:
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
