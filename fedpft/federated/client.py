"""A place where clients train: one proxy, on which any number of clients take turns, or several train together.

A client is an identity (its id and its shard of the data); a place is a process, the driver's own or a Ray actor. What
comes out of :meth:`LocalClient.fit` depends on nothing but (seed, round, client id, plan), never on the place or on who
trained there before; on a CPU in float32 that holds for :meth:`LocalClient.fit_together`, too.

How it trains is one loop, `fedpft.federated.training`, for one client, for several and for private examples.
"""

import itertools
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import fmean

import lightning as L
import numpy as np
import torch
from torch import Tensor

from fedpft.data.collate import prepared_rows
from fedpft.data.shared import opened
from fedpft.federated.client_steps.base import ClientStep, End, Start
from fedpft.federated.client_steps.table import client_step
from fedpft.federated.local_batches import Batch, batches, poisson_batches
from fedpft.federated.local_schedule import rate_factors
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.federated.memory import GpuPeak, is_out_of_memory
from fedpft.federated.messages import Arrays, ClientUpdate, RoundPlan
from fedpft.federated.package import ClientPackage
from fedpft.federated.read_ahead import ReadAhead
from fedpft.federated.throughput import Throughput
from fedpft.federated.training import Training
from fedpft.federated.turns import Group, Turn
from fedpft.models.activations import ActivationCounts, InactivityCounter
from fedpft.models.ffn import find_ffns
from fedpft.models.flags import keep_no_keys
from fedpft.models.flat_adapter import FlatAdapter
from fedpft.models.lora import adapter_layout, rank_mask
from fedpft.models.patches import Change
from fedpft.models.quantize import check_layers
from fedpft.models.recompute import recompute_layers
from fedpft.models.together import ForeignDrawError, prepare_for_many
from fedpft.models.weights import patched, replace_weights, unpack_model
from fedpft.seeding import derive_seed, isolated_torch_rng, numpy_rng
from fedpft.trainer import hush_lightning


class LocalClient:
    """Plays clients on one copy of the proxy; knows no server and no FM."""

    def __init__(self, package: ClientPackage, name: str = "driver") -> None:
        hush_lightning()
        self._package, self._settings, self._name = package, package.settings, name
        self._train_rows = opened(package.train)
        self.ahead = ReadAhead(self._train_rows, package.partition)
        module = LocalTuningModule(unpack_model(package.proxy)).train()
        keep_no_keys(module)
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
        self._training: Training | None = None
        """The one that goes on, or ended with an exception."""

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
                elif self._training is not None and self._training.together and is_out_of_memory(error):
                    self._throughput.halve(*self._training.together)
                else:
                    raise
                self._training = None
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
            self._training = Training(
                module=module,
                fabric=self._fabric,
                adapter=self._adapter,
                settings=settings,
                costs=self._package.step_costs,
                throughput=self._throughput,
                group=group,
                keeps_bits=self._keeps_bits,
            )
            self._training.run()
            self._training = None
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
                batches=self._batches_of(plan.round_index, client_id),
                seed=derive_seed(settings.seed, "local", plan.round_index, client_id),
                start=Start(adapter=self._cut(adapter, client_id), shared=shared, own=own),
                factors=rate_factors(settings.client, settings.num_steps(len(shard))),
                noise=self._noise(plan, client_id),
            )
            turns.append(turn)
        return turns

    def _batches_of(self, round_index: int, client_id: int) -> Iterator[Batch]:
        package, noise = self._package, self._settings.example_noise
        examples = prepared_rows(self._train_rows, package.partition.shard(client_id), package.collate)
        of_client = (examples, package.collate, package.settings, round_index, client_id)
        found = batches(*of_client) if noise is None else poisson_batches(*of_client, noise, self._examples_together)
        for batch in found:
            yield replace(
                batch,
                tensors=self._fabric.to_device(dict(batch.tensors)),
                targets=tuple(map(self._fabric.to_device, batch.targets)),
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


@contextmanager
def _torch_threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
