"""The peers' two workloads as our package: the same model, data, seeds, order of batches and optimiser.

Where the peers draw a client's seed and the order of its batches in another way than ours, theirs is taken: importing
this module, which an actor does to unpack the package, replaces ours. Nothing else of ours is changed.
"""

from types import SimpleNamespace
from typing import Any

import common
import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

import fedpft.federated.client
from fedpft.data.partition import Partition
from fedpft.federated.client import ClientPackage
from fedpft.federated.messages import LocalSettings
from fedpft.models.weights import pack_model


def _peers_seed(seed: int, purpose: str, round_index: int, client_id: int) -> int:
    return common.client_seed(round_index - 1, client_id)


def _peers_order(seed: int, purpose: str, round_index: int, client_id: int) -> Any:
    return SimpleNamespace(permutation=np.arange)


fedpft.federated.client.derive_seed = _peers_seed
fedpft.federated.client.numpy_rng = _peers_order


class AllAdapter(nn.Module):
    """A model that is tuned as a whole: every parameter has the name of an adapter's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules_to_save = model

    def forward(self, **batch: Tensor) -> Any:
        return self.modules_to_save(**batch)


class TensorCollator:
    """Rows of plain numbers -> tensors of the peers' shapes."""

    def __init__(self, column: str, shape: tuple[int, ...]) -> None:
        """`column`: the model's input; `shape`: of one example."""
        self._column, self._shape = column, shape

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        inputs = torch.tensor([row[self._column] for row in rows]).reshape(len(rows), *self._shape)
        batch = {self._column: inputs, "labels": torch.tensor([row["label"] for row in rows])}
        if self._column == "input_ids":
            batch["attention_mask"] = torch.ones_like(inputs)
        return batch


def make_package(workload: str, num_clients: int | None = None) -> ClientPackage:
    """Return proxy, data and settings of `minilm` or `overhead`; more clients than it has share its data."""
    numbers = common.WORKLOADS[workload]
    model = common.build_model(workload)
    column = "input_ids" if workload == "minilm" else "pixel_values"
    inputs, labels = common.make_data(workload)
    clients, examples, *shape = inputs.shape
    return ClientPackage(
        proxy=pack_model(AllAdapter(model) if workload == "overhead" else model),
        watched_layers=(),
        train=Dataset.from_dict({
            column: list(inputs.reshape(clients * examples, -1).numpy()),
            "label": labels.flatten().numpy(),
        }),
        partition=Partition.of_sizes(
            np.arange((num_clients or clients) * examples) % (clients * examples),
            np.full(num_clients or clients, examples),
        ),
        collate=TensorCollator(column, tuple(shape)),
        settings=LocalSettings(
            seed=0, num_epochs=1, batch_size=numbers["batch"], head_lr_ratio=1.0, weight_decay=0.01,
            max_grad_norm=float("inf"), num_threads=1, precision="32-true", accelerator="cpu",
        ),
    )  # fmt: skip
