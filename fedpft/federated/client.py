"""A place where clients train: one proxy, on which any number of clients take turns.

A client is an identity (its id and its shard of the data); a place is a process, the driver's own or a Ray actor. What
comes out of :meth:`LocalClient.fit` depends on nothing but (seed, round, client id, plan), never on the place or on who
trained there before.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fedpft.data.collate import rows
from fedpft.data.partition import Partition
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.federated.memory import GpuPeak
from fedpft.federated.messages import ClientUpdate, LocalSettings, RoundPlan
from fedpft.federated.step_costs import StepCosts
from fedpft.models.activations import InactivityCounter
from fedpft.models.ffn import find_ffns
from fedpft.models.weights import PackedModel, replace_weights, unpack_model
from fedpft.seeding import derive_seed, isolated_torch_rng, numpy_rng
from fedpft.trainer import hush_lightning


@dataclass(frozen=True, kw_only=True)
class ClientPackage:
    """What every place needs before the first round; broadcast once."""

    proxy: PackedModel
    watched_layers: tuple[int, ...]
    """FFNs whose activations are counted when a plan asks for it: the compressed ones."""
    train: Dataset
    partition: Partition
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]
    settings: LocalSettings
    step_costs: StepCosts | None = None
    """For the client's own account of what it spent; None: there is none."""


class LocalClient:
    """Plays clients one after the other on one copy of the proxy; knows no server and no FM."""

    def __init__(self, package: ClientPackage, name: str = "driver") -> None:
        hush_lightning()
        self._package, self._settings, self._name = package, package.settings, name
        module = LocalTuningModule(
            unpack_model(package.proxy),
            head_lr_ratio=package.settings.head_lr_ratio,
            weight_decay=package.settings.weight_decay,
        )
        ffns = find_ffns(module.proxy)
        self._watched = [ffns[layer] for layer in package.watched_layers]
        self._fabric = L.Fabric(
            accelerator=package.settings.accelerator,
            devices=1,
            precision=package.settings.precision,  # type: ignore[arg-type]
        )
        self._fabric.to_device(module)
        self._module = module

    def replace_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over the FFN weights that a neuron-level alignment changed."""
        replace_weights(self._module.proxy, weights)

    def fit(self, plan: RoundPlan, client_id: int) -> ClientUpdate:
        """Train the plan's adapter on one client's shard and return it."""
        start = time.perf_counter()
        settings, module, costs = self._settings, self._module, self._package.step_costs
        shard = self._package.partition.shard(client_id)
        module.adapter.write(plan.adapter)
        module.lr = plan.lr
        module.train()
        loss_sum, counter = 0.0, InactivityCounter(self._watched)
        flops, memory_bytes, gpu_peak = 0, 0, GpuPeak(module, self._fabric.device)
        with ExitStack() as stack:
            stack.enter_context(_torch_threads(settings.num_threads))
            stack.enter_context(isolated_torch_rng(derive_seed(settings.seed, "local", plan.round_index, client_id)))
            if plan.count_activations:
                stack.enter_context(counter)
            optimizer: Any = self._fabric.setup_optimizers(module.configure_optimizers())
            for step, batch in enumerate(self._batches(shard, plan.round_index, client_id)):
                if plan.count_activations:
                    counter.set_mask(batch.get("attention_mask"))
                with self._fabric.autocast():
                    loss = module.training_step(batch, step)
                self._fabric.backward(loss)
                # what is not finite is refused by the driver, who knows the round and the client
                clip_grad_norm_(module.adapter.parameters, settings.max_grad_norm)
                optimizer.step()
                module.adapter.zero_grad()
                loss_sum += loss.item() * len(batch["labels"])
                if costs is not None:
                    flops += costs.flops(batch)
                    memory_bytes = max(memory_bytes, costs.memory_bytes(batch))
        return ClientUpdate(
            client_id=client_id,
            num_examples=len(shard),
            adapter=module.adapter.read(),
            metrics={
                "loss": loss_sum / (len(shard) * settings.num_epochs),
                "seconds": time.perf_counter() - start,
                **({} if costs is None else {"flops": flops, "memory_bytes": memory_bytes}),
                **gpu_peak.metrics(),
            },
            counts=counter.counts() if plan.count_activations else None,
            actor=self._name,
        )

    def _batches(self, shard: np.ndarray, round_index: int, client_id: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield the client's batches on the device, in an order of its own for every round and epoch."""
        rng = numpy_rng(self._settings.seed, "batches", round_index, client_id)
        examples = rows(self._package.train, shard)
        for _ in range(self._settings.num_epochs):
            order = rng.permutation(len(examples))
            for start in range(0, len(order), self._settings.batch_size):
                batch = self._package.collate([examples[i] for i in order[start : start + self._settings.batch_size]])
                yield self._fabric.to_device(dict(batch))


@contextmanager
def _torch_threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
