"""What is known of clients while they train: of each on its own, and of those that train together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from fedpft.federated.client_steps.base import ClientStep, Start, clip_norms
from fedpft.federated.local_batches import Batch
from fedpft.federated.step_costs import StepCosts
from fedpft.models.activations import InactivityCounter


@dataclass(kw_only=True)
class Turn:
    """One client on its way through its batches."""

    client_id: int
    num_examples: int
    batches: Iterator[Batch]
    seed: int
    start: Start
    factors: Sequence[float]
    """Of the rate in each of its steps."""
    noise: Iterator[Tensor] | None = None
    """A row for each step, on the sum of its examples' gradients; None: there is none."""
    steps_done: int = 0
    num_seen: int = 0
    """Examples, each as often as it was in a batch."""
    num_clipped: Tensor | int = 0
    """How often an example's gradient was too long; on the device, as `loss_sum`."""
    loss_sum: Tensor | float = 0.0
    """Float64, on the device until the last batch: reading it makes the CPU wait for the GPU."""
    seconds: float = 0.0
    """Its part of the time of its steps."""
    flops: int = 0
    memory_bytes: int = 0
    company: list[int] = field(default_factory=list)
    """Of each batch: how many clients were in its forward pass."""

    def account(
        self, batch: Batch, loss: Tensor, seconds: float, costs: StepCosts | None, num_clients: int = 1
    ) -> None:
        """Add what a batch came to, which so many clients had in one pass; `costs` says what its step took."""
        num_examples = len(batch.tensors["labels"])
        self.loss_sum = self.loss_sum + loss * num_examples
        self.num_seen += num_examples
        self.seconds += seconds
        self.company.append(num_clients)
        if costs is not None:
            self.flops += costs.flops(batch.tensors, batch.num_targets)
            self.memory_bytes = max(self.memory_bytes, costs.memory_bytes(batch.tensors, batch.num_targets))


@dataclass(frozen=True, kw_only=True)
class Group:
    """What the clients of a group share while they train; rows are their positions in it."""

    turns: Sequence[Turn]
    rule: ClientStep
    segments: Sequence[slice]
    """Columns of each tensor that is tuned: of these a gradient has its norm."""
    memory: Sequence[Tensor]
    """What the rule remembers of each, (K, P)."""
    sums: Tensor | None
    """(K, P): of the gradients of a step's batches so far; None: every batch makes a step."""
    counter: InactivityCounter | None
    generators: Sequence[torch.Generator]
    """One for each; none: a client alone draws from torch's own."""

    def step(self, values: Tensor, clients: Sequence[int], gradients: Tensor, max_norm: float) -> None:
        """Let some clients make a step.

        Args:
            values: (K, P), changed in the rows of these clients.
            clients: their rows, ascending.
            gradients: (clients, P), changed.
            max_norm: to which those of a larger norm are scaled down.

        """
        alike = list(self.alike(clients))
        for own, which, *_ in alike:
            self.rule.add_own(values[own], gradients[which], [memory[own] for memory in self.memory])
        # what is not finite is refused by the driver, who knows the round and the client
        clip_norms(gradients, self.segments, max_norm)
        for own, which, steps_done, factor in alike:
            self.rule(values[own], gradients[which], [memory[own] for memory in self.memory], steps_done, factor)
        for client in clients:
            self.turns[client].steps_done += 1

    def alike(self, clients: Sequence[int]) -> Iterator[tuple[slice, slice, int, float]]:
        """Yield what can make one step among clients, ascending: their rows, and which of `clients` these are.

        With the number of steps that each has done, and the factor of the rate in the next one.
        """
        for rows, which in runs_of(clients):
            turns = self.turns[rows]
            nexts = [(turn.steps_done, turn.factors[turn.steps_done]) for turn in turns]
            cuts = [0, *(i for i in range(1, len(nexts)) if nexts[i] != nexts[i - 1]), len(nexts)]
            for first, end in pairwise(cuts):
                yield (
                    slice(rows.start + first, rows.start + end),
                    slice(which.start + first, which.start + end),
                    *nexts[first],
                )


def runs_of(clients: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield each stretch of neighbours among ascending numbers, and where in the sequence it is."""
    start = 0
    for end in range(1, len(clients) + 1):
        if end == len(clients) or clients[end] != clients[end - 1] + 1:
            yield slice(clients[start], clients[end - 1] + 1), slice(start, end)
            start = end
