"""The training loop of a place: a group of clients on its way through its batches.

Clients that train together make their steps side by side: those whose next batches have the same shape share one
forward and one backward pass (see `fedpft.models.together`), and a client whose batches are used up takes no part any
more. One client alone is the case of one.

With differential privacy of examples (`fedpft.privacy.dp_sgd`) one client trains at a time, and its examples lie side
by side as clients of one example each: so each example's gradient is known, for every model that can train several
clients, without hooks for kinds of layers.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import lightning as L
import psutil
import torch
from torch import Tensor

from fedpft.attention_mask import real_tokens
from fedpft.devices import sent_to
from fedpft.federated.grouping import by_shape
from fedpft.federated.local_batches import Batch
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.federated.messages import LocalSettings
from fedpft.federated.step_costs import StepCosts
from fedpft.federated.throughput import Throughput
from fedpft.federated.turns import Group
from fedpft.models.flat_adapter import FlatAdapter
from fedpft.models.together import Together

FREE_RAM_SHARE = 0.25
"""Of the RAM that is free, for what clients that train together keep for the backward pass: others want some, too."""


@dataclass(kw_only=True)
class Training:
    """One group's round on a place's proxy."""

    module: LocalTuningModule
    fabric: L.Fabric
    adapter: FlatAdapter
    """With a row for each of the group's clients; with privacy of examples the first is the client's."""
    settings: LocalSettings
    costs: StepCosts | None
    throughput: Throughput
    group: Group
    keeps_bits: bool
    """Whether each client must get the bits that it gets alone."""
    together: tuple[Mapping[str, Tensor], int] | None = field(default=None, init=False)
    """A batch of the clients that are computed together now, and how many they are."""

    def run(self) -> None:
        """Train until all batches are used up."""
        step = self._side_by_side if self.settings.example_noise is None else self._privately
        while step():
            pass

    def _side_by_side(self) -> bool:
        """Let every client that has another batch train on it; return whether one had."""
        start = time.perf_counter()
        batches = {row: next(turn.batches, None) for row, turn in enumerate(self.group.turns)}
        found = {row: batch for row, batch in batches.items() if batch is not None}
        reading = (time.perf_counter() - start) / max(1, len(found))
        shapes = {row: batch.tensors for row, batch in found.items()}
        for alike in by_shape(shapes) if len(found) > 1 else [list(found)] if found else []:
            batch = shapes[alike[0]]
            for together in self.throughput.cut(alike, batch, self._most_by_memory(batch, len(alike))):
                start = time.perf_counter()
                self.together = (batch, len(together)) if len(together) > 1 else None
                losses = self._descend(together, [found[row] for row in together])
                seconds = time.perf_counter() - start
                self.throughput.note(batch, len(together), seconds)
                for row, loss in zip(together, losses, strict=True):
                    self.group.turns[row].account(
                        found[row], loss, seconds / len(together) + reading, self.costs, len(together)
                    )
        self.together = None
        return bool(found)

    def _descend(self, clients: Sequence[int], batches: Sequence[Batch]) -> Tensor:
        """Get the gradients of some clients on batches of one shape, and make the steps that end with these.

        Returns:
            Each client's loss, on the device.

        """
        gradients = self.adapter.face(clients)
        parts = [batch.tensors for batch in batches]
        batch = parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if self.group.counter is not None:
            rows = [real_tokens(part["attention_mask"]) for part in parts if "attention_mask" in part]
            self.group.counter.set_rows(rows or None, clients, parts[0].get("attention_mask", batch["labels"]).numel())
        generators = [self.group.generators[client] for client in clients] if self.group.generators else []
        targets = [part for of_client in batches for part in of_client.targets]
        losses = self._losses(batch, targets, generators, exact=self.keeps_bits)
        if self.group.sums is None:
            self.fabric.backward(losses.sum())
            self.group.step(self.adapter.values, clients, gradients, self.settings.max_grad_norm)
        else:
            shares = sent_to(losses.device, [batch.share for batch in batches])
            self.fabric.backward((losses.reshape(-1) * shares).sum())
            self.group.sums.index_add_(0, sent_to(losses.device, clients), gradients)
            due = [client for client, batch in zip(clients, batches, strict=True) if batch.ends_step]
            if due:
                ended = sent_to(losses.device, due)
                self.group.step(self.adapter.values, due, self.group.sums[ended], self.settings.max_grad_norm)
                self.group.sums.index_fill_(0, ended, 0)
        gradients.zero_()
        return losses.detach().reshape(-1).double()

    def _privately(self) -> bool:
        """Let the only client take the next part of a batch, and with its last part a step; return whether it had one.

        The step's gradient is a sum of clipped ones with noise, divided by the number expected: nothing that comes of
        it needs to be clipped again.
        """
        start, (turn,), noise = time.perf_counter(), self.group.turns, self.settings.example_noise
        part = next(turn.batches, None)
        if part is None:
            return False
        assert noise is not None
        assert turn.noise is not None
        assert self.group.sums is not None
        if part.tensors:
            gradients, losses = self._of_each_example(part)
            total, num_clipped = noise.clipped_sum(gradients, self.group.segments)
            gradients.zero_()
            self.group.sums[0] += total
            turn.num_clipped = turn.num_clipped + num_clipped
            turn.account(part, losses.mean(), 0.0, self.costs)
        if part.ends_step:
            self.group.sums[0] += next(turn.noise)
            self.group.sums.div_(noise.num_expected(turn.num_examples))
            self.group.step(self.adapter.values, [0], self.group.sums, math.inf)
            self.group.sums.zero_()
        turn.seconds += time.perf_counter() - start
        return True

    def _of_each_example(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the gradient of each example of a batch, (k, ...), a view, and each one's loss, (k,).

        A loss that is not finite counts as zero: no update may be refused for what has no noise on it.
        """
        rows = range(len(batch.tensors["labels"]))
        gradients = self.adapter.face(rows)
        self.adapter.values[1 : len(rows)] = self.adapter.values[0]
        generators = [*self.group.generators] * len(rows)
        losses = self._losses(batch.tensors, batch.targets, generators, exact=False).reshape(-1)
        self.fabric.backward(losses.sum())
        return gradients, losses.detach().double().nan_to_num(posinf=0.0)

    def _losses(
        self,
        batch: Mapping[str, Tensor],
        targets: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        *,
        exact: bool,
    ) -> Tensor:
        """Return the loss of a batch; with generators that of each part of it, which has one of its own."""
        with ExitStack() as stack:
            stack.enter_context(self.fabric.autocast())
            if generators:
                stack.enter_context(Together(generators, exact=exact))
            return self.module.training_step(batch, 0, targets)

    def _most_by_memory(self, batch: Mapping[str, Tensor], wanted: int) -> int | None:
        """Return for how many clients there is RAM; None: it is not known, or not asked."""
        costs = self.costs
        if costs is None or wanted == 1 or not self.throughput.is_to_learn:
            return None
        of_each = costs.memory_bytes(batch) - costs.fixed_bytes
        return int(FREE_RAM_SHARE * psutil.virtual_memory().available / max(1, of_each))
