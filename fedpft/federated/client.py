"""A place where clients train: one proxy, on which any number of clients take turns, or several train together.

A client is an identity (its id and its shard of the data); a place is a process, the driver's own or a Ray actor. What
comes out of :meth:`LocalClient.fit` depends on nothing but (seed, round, client id, plan), never on the place or on who
trained there before; on a CPU in float32 that holds for :meth:`LocalClient.fit_together`, too.

There is one training loop. Clients that train together make their steps side by side: those whose next batches have the
same shape share one forward and one backward pass (see `fedpft.models.together`), and a client whose batches are used
up takes no part any more. One client alone is the case of one.

With differential privacy of examples (`fedpft.privacy.dp_sgd`) one client trains at a time, and its examples lie side
by side as clients of one example each: so each example's gradient is known, for every model that can train several
clients, without hooks for kinds of layers.
"""

import itertools
import math
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import fmean

import lightning as L
import numpy as np
import psutil
import torch
from torch import Tensor

from fedpft.data.collate import prepared_rows
from fedpft.data.shared import opened
from fedpft.federated.client_steps.base import ClientStep, End, Start
from fedpft.federated.client_steps.table import client_step
from fedpft.federated.grouping import by_shape
from fedpft.federated.local_batches import Batch, batches, poisson_batches
from fedpft.federated.local_schedule import rate_factors
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.federated.memory import GpuPeak, is_out_of_memory
from fedpft.federated.messages import Arrays, ClientUpdate, RoundPlan
from fedpft.federated.package import ClientPackage
from fedpft.federated.read_ahead import ReadAhead
from fedpft.federated.throughput import Throughput
from fedpft.federated.turns import Group, Turn
from fedpft.models.activations import ActivationCounts, InactivityCounter, real_rows
from fedpft.models.ffn import find_ffns
from fedpft.models.flat_adapter import FlatAdapter
from fedpft.models.lora import adapter_layout, rank_mask
from fedpft.models.patches import Change
from fedpft.models.quantize import check_layers
from fedpft.models.recompute import recompute_layers
from fedpft.models.together import ForeignDrawError, Together, prepare_for_many
from fedpft.models.weights import patched, replace_weights, unpack_model
from fedpft.seeding import derive_seed, isolated_torch_rng, numpy_rng
from fedpft.trainer import hush_lightning

FREE_RAM_SHARE = 0.25
"""Of the RAM that is free, for what clients that train together keep for the backward pass: others want some, too."""


class LocalClient:
    """Plays clients on one copy of the proxy; knows no server and no FM."""

    def __init__(self, package: ClientPackage, name: str = "driver") -> None:
        hush_lightning()
        self._package, self._settings, self._name = package, package.settings, name
        self._train_rows = opened(package.train)
        self.ahead = ReadAhead(self._train_rows, package.partition)
        module = LocalTuningModule(unpack_model(package.proxy)).train()
        if package.settings.recomputes:
            recompute_layers(module.proxy)
        ffns = find_ffns(module.proxy)
        self._watched = [ffns[layer] for layer in package.watched_layers]
        self._fabric = L.Fabric(
            accelerator=package.settings.accelerator,
            devices=1,
            precision=package.settings.precision,  # type: ignore[arg-type]
        )
        self._fabric.to_device(module)
        check_layers(module.proxy, self._fabric.device)
        self._module = module
        self._adapter = FlatAdapter(module.proxy)
        self._proxys_own = self._adapter.values[0].clone()
        layout = adapter_layout(module.proxy)
        ranks = set(package.ranks.values())
        self._of_rank = {rank: self._adapter.row_of(rank_mask(layout, rank)) for rank in ranks}
        """Rank -> row of what a client of this rank has."""
        prepare_for_many(module.proxy)
        self._throughput = Throughput(is_to_learn=self._keeps_bits and package.settings.clients_per_batch == "auto")
        self._is_for_one = False
        self._together: tuple[Mapping[str, Tensor], int] | None = None
        """A batch of the clients that are computed together now, and how many they are."""

    def replace_weights(self, weights: Mapping[str, Change]) -> None:
        """Take over the FFN weights that a neuron-level alignment changed."""
        replace_weights(self._module.proxy, weights)

    def patched(self, weights: Mapping[str, Change]) -> dict[str, np.ndarray]:
        """Return whole what :meth:`replace_weights` would take over."""
        return patched(self._module.proxy, weights)

    def start(self, plan: RoundPlan) -> np.ndarray:
        """Return what an update of the plan is measured from: the numbers that it tunes, before training."""
        return self._adapter.vector_of(self._row_sent(plan), plan.tuned)

    def fit(self, plan: RoundPlan, client_id: int) -> ClientUpdate:
        """Train the plan's adapter on one client's shard and return it."""
        try:
            (update,) = self._train(plan, [client_id])
        except ForeignDrawError as error:  # of examples side by side
            self._go_one_by_one(error, "examples")
            (update,) = self._train(plan, [client_id])
        return update

    def fit_together(self, plan: RoundPlan, client_ids: Sequence[int]) -> list[ClientUpdate]:
        """Train several clients side by side; return their updates in this order.

        When memory runs out they begin again, with half as many in a forward pass; a model that cannot run for several
        at once has them one after the other.
        """
        while len(client_ids) > 1 and not self._is_for_one and self._settings.example_noise is None:
            try:
                return self._train(plan, client_ids)
            except Exception as error:
                if isinstance(error, ForeignDrawError):
                    self._go_one_by_one(error, "clients")
                elif self._together is not None and is_out_of_memory(error):
                    self._throughput.halve(*self._together)
                else:
                    raise
                traceback.clear_frames(error.__traceback__)  # half a graph, which still knows the adapter's old shapes
            if self._fabric.device.type == "cuda":
                torch.cuda.empty_cache()
        return [self.fit(plan, client_id) for client_id in client_ids]

    def _go_one_by_one(self, error: ForeignDrawError, what: str) -> None:
        warnings.warn(f"{what} train one by one: {error}", stacklevel=3)
        self._is_for_one = True

    def _train(self, plan: RoundPlan, client_ids: Sequence[int]) -> list[ClientUpdate]:
        start = time.perf_counter()
        settings, module = self._settings, self._module
        is_private = settings.example_noise is not None
        num_rows = self._examples_together if is_private else len(client_ids)
        if num_rows > self._adapter.num_clients:
            self._adapter.face([0])  # the shapes of one client's adapter
            self._adapter = FlatAdapter(module.proxy, num_rows)
        first = self._row_sent(plan)
        self._adapter.fill(first)
        turns = self._turns(plan, first, client_ids)
        for row, turn in enumerate(turns) if self._of_rank else ():
            self._adapter.values[row] = turn.start.adapter
        gpu_peak = GpuPeak(module, self._fabric.device)
        with ExitStack() as stack:
            stack.enter_context(_torch_threads(settings.num_threads))
            stack.enter_context(isolated_torch_rng(turns[0].seed))
            rule = self._rule(plan)
            group = Group(
                turns=turns,
                rule=rule,
                segments=self._adapter.tuned_segments(plan.tuned),
                memory=[torch.stack(kind) for kind in zip(*(rule.begin(turn.start) for turn in turns), strict=True)],
                sums=torch.zeros_like(self._adapter.values[: len(turns)])
                if settings.accumulate > 1 or is_private
                else None,
                counter=InactivityCounter(self._watched, len(turns)) if plan.count_activations else None,
                generators=[torch.Generator(self._fabric.device).manual_seed(turn.seed) for turn in turns]
                if len(turns) > 1 or (is_private and not self._is_plain)
                else [],
            )
            if group.counter is not None:
                stack.enter_context(group.counter)
            while self._train_privately(group) if is_private else self._train_side_by_side(group):
                pass
        ends = [
            rule.end(turn.start, self._adapter.values[row], [memory[row] for memory in group.memory], turn.factors)
            for row, turn in enumerate(turns)
        ]
        for turn in turns:
            turn.loss_sum = float(turn.loss_sum)  # here the CPU waits for the GPU, not in every step
        rest = (time.perf_counter() - start - sum(turn.seconds for turn in turns)) / len(turns)
        peaks = gpu_peak.metrics(len(turns))
        return [
            self._update(plan, turn, end, None if group.counter is None else group.counter.counts(row), rest, peaks)
            for row, (turn, end) in enumerate(zip(turns, ends, strict=True))
        ]

    def _update(
        self,
        plan: RoundPlan,
        turn: Turn,
        end: End,
        counts: ActivationCounts | None,
        rest: float,
        peaks: Mapping[str, float],
    ) -> ClientUpdate:
        """Return what one client sends; `rest` is its part of the seconds between the steps."""
        spent = {"flops": turn.flops, "memory_bytes": turn.memory_bytes}
        return ClientUpdate(
            client_id=turn.client_id,
            num_examples=turn.num_examples,
            adapter=self._adapter.vector_of(self._cut(end.adapter, turn.client_id), plan.tuned),
            state={name: self._adapter.vector_of(array) for name, array in end.own.items()},
            metrics={
                "loss": float(turn.loss_sum) / max(1, turn.num_seen),
                "seconds": turn.seconds + rest,
                **({} if self._package.step_costs is None else spent),
                **({} if self._settings.clients_per_batch == 1 else {"together": fmean(turn.company or [1])}),
                **({} if turn.noise is None else {"clipped": float(turn.num_clipped) / max(1, turn.num_seen)}),
                **peaks,
            },
            counts=counts,
            actor=self._name,
        )

    def _train_side_by_side(self, group: Group) -> bool:
        """Let every client that has another batch train on it; return whether one had."""
        start = time.perf_counter()
        batches = {row: next(turn.batches, None) for row, turn in enumerate(group.turns)}
        found = {row: batch for row, batch in batches.items() if batch is not None}
        reading = (time.perf_counter() - start) / max(1, len(found))
        shapes = {row: batch.tensors for row, batch in found.items()}
        for alike in by_shape(shapes) if len(found) > 1 else [list(found)] if found else []:
            batch = shapes[alike[0]]
            for together in self._throughput.cut(alike, batch, self._most_by_memory(batch, len(alike))):
                start = time.perf_counter()
                self._together = (batch, len(together)) if len(together) > 1 else None
                losses = self._descend(group, together, [found[row] for row in together])
                seconds = time.perf_counter() - start
                self._throughput.note(batch, len(together), seconds)
                for row, loss in zip(together, losses, strict=True):
                    group.turns[row].account(
                        found[row], loss, seconds / len(together) + reading, self._package.step_costs, len(together)
                    )
        self._together = None
        return bool(found)

    def _descend(self, group: Group, clients: Sequence[int], batches: Sequence[Batch]) -> Tensor:
        """Get the gradients of some clients on batches of one shape, and make the steps that end with these.

        Returns:
            Each client's loss, on the device.

        """
        gradients = self._adapter.face(clients)
        parts = [batch.tensors for batch in batches]
        batch = parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if group.counter is not None:
            rows = [part.real for part in batches if part.real is not None]
            group.counter.set_rows(rows or None, clients, parts[0].get("attention_mask", batch["labels"]).numel())
        generators = [group.generators[client] for client in clients] if group.generators else []
        targets = [part for of_client in batches for part in of_client.targets]
        losses = self._losses(batch, targets, generators, exact=self._keeps_bits)
        if group.sums is None:
            self._fabric.backward(losses.sum())
            group.step(self._adapter.values, clients, gradients, self._settings.max_grad_norm)
        else:
            shares = torch.tensor([batch.share for batch in batches], device=losses.device)
            self._fabric.backward((losses.reshape(-1) * shares).sum())
            group.sums[list(clients)] += gradients
            due = [client for client, batch in zip(clients, batches, strict=True) if batch.ends_step]
            if due:
                group.step(self._adapter.values, due, group.sums[due], self._settings.max_grad_norm)
                group.sums[due] = 0
        gradients.zero_()
        return losses.detach().reshape(-1).double()

    def _train_privately(self, group: Group) -> bool:
        """Let the only client take the next part of a batch, and with its last part a step; return whether it had one.

        The step's gradient is a sum of clipped ones with noise, divided by the number expected: nothing that comes of
        it needs to be clipped again.
        """
        start, (turn,), noise = time.perf_counter(), group.turns, self._settings.example_noise
        part = next(turn.batches, None)
        if part is None:
            return False
        assert noise is not None
        assert turn.noise is not None
        assert group.sums is not None
        if part.tensors:
            gradients, losses = self._of_each_example(part, group)
            total, num_clipped = noise.clipped_sum(gradients, group.segments)
            gradients.zero_()
            group.sums[0] += total
            turn.num_clipped = turn.num_clipped + num_clipped
            turn.account(part, losses.mean(), 0.0, self._package.step_costs)
        if part.ends_step:
            group.sums[0] += next(turn.noise)
            group.sums.div_(noise.num_expected(turn.num_examples))
            group.step(self._adapter.values, [0], group.sums, math.inf)
            group.sums.zero_()
        turn.seconds += time.perf_counter() - start
        return True

    def _of_each_example(self, batch: Batch, group: Group) -> tuple[Tensor, Tensor]:
        """Return the gradient of each example of a batch, (k, ...), a view, and each one's loss, (k,).

        A loss that is not finite counts as zero: no update may be refused for what has no noise on it.
        """
        rows = range(len(batch.tensors["labels"]))
        gradients = self._adapter.face(rows)
        self._adapter.values[1 : len(rows)] = self._adapter.values[0]
        generators = [*group.generators] * len(rows)
        losses = self._losses(batch.tensors, batch.targets, generators, exact=False).reshape(-1)
        self._fabric.backward(losses.sum())
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
            stack.enter_context(self._fabric.autocast())
            if generators:
                stack.enter_context(Together(generators, exact=exact))
            return self._module.training_step(batch, 0, targets)

    @property
    def _examples_together(self) -> int:
        return 1 if self._is_plain else self._settings.batch_size

    @property
    def _is_plain(self) -> bool:
        """Whether one pass is one example's: layers are computed again without knowing that there are several."""
        return self._is_for_one or self._settings.recomputes

    @property
    def _keeps_bits(self) -> bool:
        return replace(self._settings, accelerator=self._fabric.device.type).keeps_bits

    def _rule(self, plan: RoundPlan) -> ClientStep:
        rates = (plan.lr, plan.lr * self._settings.head_lr_ratio)
        columns = zip(self._adapter.columns(plan.tuned), rates, strict=True)
        return client_step(self._settings, plan, [(c, rate) for c, rate in columns if c.start < c.stop])

    def _row_sent(self, plan: RoundPlan) -> Tensor:
        """Return the adapter that the clients of the round begin with, as a row."""
        if plan.is_whole:
            return self._adapter.row_of(plan.adapter)
        return self._adapter.row_of(plan.adapter, plan.tuned, self._proxys_own)

    def _cut(self, row: Tensor, client_id: int) -> Tensor:
        """Return a row with zeros beyond the client's rank, where training leaves them: no gradient gets there."""
        rank = self._package.ranks.get(client_id)
        return row if rank is None else torch.where(self._of_rank[rank] > 0, row, 0.0)

    def _turns(self, plan: RoundPlan, adapter: Tensor, client_ids: Sequence[int]) -> list[Turn]:
        shared, turns = self._rows(plan.shared), []
        for client_id in client_ids:
            shard, settings = self._package.partition.shard(client_id), self._settings
            own = self._rows(plan.states.get(client_id, {}))
            turn = Turn(
                client_id=client_id,
                num_examples=len(shard),
                batches=self._batches_of(plan.round_index, client_id, counted=plan.count_activations),
                seed=derive_seed(settings.seed, "local", plan.round_index, client_id),
                start=Start(adapter=self._cut(adapter, client_id), shared=shared, own=own),
                factors=rate_factors(settings.client, settings.num_steps(len(shard))),
                noise=self._noise(plan, client_id),
            )
            turns.append(turn)
        return turns

    def _batches_of(self, round_index: int, client_id: int, *, counted: bool = False) -> Iterator[Batch]:
        package, noise = self._package, self._settings.example_noise
        examples = prepared_rows(self._train_rows, package.partition.shard(client_id), package.collate)
        of_client = (examples, package.collate, package.settings, round_index, client_id)
        found = batches(*of_client) if noise is None else poisson_batches(*of_client, noise, self._examples_together)
        for batch in found:
            mask = batch.tensors.get("attention_mask") if counted else None
            yield replace(
                batch,
                tensors=self._fabric.to_device(dict(batch.tensors)),
                targets=tuple(map(self._fabric.to_device, batch.targets)),
                real=None if mask is None else self._fabric.to_device(real_rows(mask)),
            )

    def _noise(self, plan: RoundPlan, client_id: int) -> Iterator[Tensor] | None:
        """Return the noise of each of a client's steps, as rows; None: there is none."""
        noise = self._settings.example_noise
        if noise is None:
            return None
        rng = numpy_rng(self._settings.seed, "example_noise", plan.round_index, client_id)
        size = sum(segment.stop - segment.start for segment in self._adapter.tuned_segments(plan.tuned))
        rows = (self._adapter.row_of(noise.noise(size, rng), plan.tuned) for _ in itertools.repeat(None))
        return (self._cut(row, client_id) for row in rows)

    def _rows(self, arrays: Arrays) -> dict[str, Tensor]:
        return {name: self._adapter.row_of(array) for name, array in arrays.items()}

    def _most_by_memory(self, batch: Mapping[str, Tensor], wanted: int) -> int | None:
        """Return for how many clients there is RAM; None: it is not known, or not asked."""
        costs = self._package.step_costs
        if costs is None or wanted == 1 or not self._throughput.is_to_learn:
            return None
        of_each = costs.memory_bytes(batch) - costs.fixed_bytes
        return int(FREE_RAM_SHARE * psutil.virtual_memory().available / max(1, of_each))


@contextmanager
def _torch_threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
