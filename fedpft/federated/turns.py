"""What is known of clients while they train: of each on its own, and of those that train together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpft.federated.client_step import ClientStep
from fedpft.models.activations import InactivityCounter


@dataclass(kw_only=True)
class Turn:
    """One client on its way through its batches."""

    client_id: int
    num_examples: int
    batches: Iterator[Mapping[str, Tensor]]
    seed: int
    loss_sum: float = 0.0
    seconds: float = 0.0
    """Its part of the time of its steps."""
    flops: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Group:
    """What the clients of a group share while they train; rows are their positions in it."""

    turns: Sequence[Turn]
    rule: ClientStep
    segments: Sequence[slice]
    """Columns of each tensor that is tuned: of these a gradient has its norm."""
    moments: Sequence[Tensor]
    counter: InactivityCounter | None
    generators: Sequence[torch.Generator]
    """One for each; none: a client alone draws from torch's own."""


def runs_of(clients: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield each stretch of neighbours among ascending numbers, and where in the sequence it is."""
    start = 0
    for end in range(1, len(clients) + 1):
        if end == len(clients) or clients[end] != clients[end - 1] + 1:
            yield slice(clients[start], clients[end - 1] + 1), slice(start, end)
            start = end
