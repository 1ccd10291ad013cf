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
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import fedpft.federated.client
import fedpft.federated.local_batches
from fedpft.data.partition import Partition
from fedpft.federated.messages import LocalSettings
from fedpft.federated.package import ClientPackage
from fedpft.models.together import Together
from fedpft.models.weights import pack_model


def _peers_seed(seed: int, purpose: str, round_index: int, client_id: int) -> int:
    return common.client_seed(round_index - 1, client_id)


def _peers_order(seed: int, purpose: str, round_index: int, client_id: int) -> Any:
    return SimpleNamespace(permutation=np.arange)


for _module, _name, _peers in (
    (fedpft.federated.client, "derive_seed", _peers_seed),
    (fedpft.federated.local_batches, "numpy_rng", _peers_order),
):
    assert hasattr(_module, _name), f"{_module.__name__} no longer draws by {_name}"
    setattr(_module, _name, _peers)


class AllAdapter(nn.Module):
    """A model that is tuned as a whole: every parameter has the name of an adapter's.

    Not all of it is made of linear layers; so it runs for several clients by torch's own means, one function mapped
    over their parameters, and not with the bits of one alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules_to_save = model
        self._num_axes = next(model.parameters()).dim()

    def forward(self, **batch: Tensor) -> Any:
        model = self.modules_to_save
        parameters = dict(model.named_parameters())
        first = next(iter(parameters.values()))
        if first.dim() == self._num_axes:
            return model(**batch)
        labels = batch.pop("labels")
        batches = {name: tensor.unflatten(0, (len(first), -1)) for name, tensor in batch.items()}
        model.set_attn_implementation("eager")
        assert Together.current is not None
        with Together.current.only(0):  # each call sees one client's rows
            logits = vmap(lambda own, its: functional_call(model, own, (), its).logits)(parameters, batches)
        model.set_attn_implementation("sdpa")
        return SimpleNamespace(loss=F.cross_entropy(logits.flatten(0, 1), labels))


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


TYPICAL = {"clients": 1000, "sampled": 100, "examples": 8, "batch": 8, "lr": 8e-4}
"""Batches of 8 texts of up to 64 tokens, 1 to 6 a client, of unequal lengths: what a user has. Ours alone, so that it
has no `raw2`."""
TYPICAL_BATCHES, TYPICAL_TOKENS = 6, 64
common.WORKLOADS["typical"] = TYPICAL


def typical_lengths() -> tuple[np.ndarray, list[np.ndarray]]:
    """Return how many batches each client has, and how many tokens each of its texts: log-normal, cut off."""
    rng = np.random.default_rng(7)
    batches = rng.integers(1, TYPICAL_BATCHES + 1, TYPICAL["clients"])
    lengths = [np.clip(rng.lognormal(3.3, 0.6, 8 * n).astype(int), 4, TYPICAL_TOKENS) for n in batches]
    return batches, lengths


class PaddingCollator:
    """Rows of texts of unequal lengths -> a batch that is padded to its longest."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [torch.tensor(row["input_ids"]) for row in rows]
        return {
            "input_ids": pad_sequence(texts, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(text) for text in texts], batch_first=True),
            "labels": torch.tensor([row["label"] for row in rows]),
        }


def typical_package(together: int | str = 1, numbers: str = "float32") -> ClientPackage:
    """Return MiniLM's sub-FM and the clients of `typical`."""
    batches, lengths = typical_lengths()
    rng = np.random.default_rng(8)
    texts = [rng.integers(1000, 20000, length) for length in np.concatenate(lengths)]
    return ClientPackage(
        proxy=pack_model(with_weights(common.build_model("minilm"), numbers)),
        watched_layers=(),
        train=Dataset.from_dict({"input_ids": texts, "label": rng.integers(0, 2, len(texts)).tolist()}),
        partition=Partition.of_sizes(np.arange(len(texts)), 8 * batches),
        collate=PaddingCollator(),
        settings=settings_of("typical", together, numbers),
    )


NUMBERS = {"float32": ("32-true", "float32"), "bf16": ("bf16-mixed", "float32"), "bf16w": ("bf16-mixed", "bfloat16")}
"""In which clients compute: Lightning's precision, and what the frozen weights are."""


def with_weights(model: nn.Module, numbers: str) -> nn.Module:
    """Return the model with its frozen weights as `NUMBERS` says; what is tuned stays float32."""
    if NUMBERS[numbers][1] == "bfloat16":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    return model


def settings_of(workload: str, together: int | str, numbers: str = "float32") -> LocalSettings:
    """Return how clients train."""
    precision, frozen_dtype = NUMBERS[numbers]
    return LocalSettings(
        seed=0, num_epochs=1, batch_size=common.WORKLOADS[workload]["batch"], head_lr_ratio=1.0, weight_decay=0.01,
        max_grad_norm=float("inf"), num_threads=1, precision=precision, frozen_dtype=frozen_dtype,
        accelerator="cpu", clients_per_batch=together,
    )  # fmt: skip


def make_package(
    workload: str, num_clients: int | None = None, together: int | str = 1, numbers: str = "float32"
) -> ClientPackage:
    """Return proxy, data and settings of a workload; more clients than `minilm` or `overhead` has share its data."""
    if workload == "typical":
        return typical_package(together, numbers)
    model = with_weights(common.build_model(workload), numbers)
    column = "input_ids" if workload == "minilm" else "pixel_values"
    inputs, labels = common.make_data(workload)
    clients, examples, *shape = inputs.shape
    return ClientPackage(
        proxy=pack_model(AllAdapter(model) if workload == "overhead" else model),
        watched_layers=(),
        train=Dataset.from_dict(
            {
                column: list(inputs.reshape(clients * examples, -1).numpy()),
                "label": labels.flatten().numpy(),
            }
        ),
        partition=Partition.of_sizes(
            np.arange((num_clients or clients) * examples) % (clients * examples),
            np.full(num_clients or clients, examples),
        ),
        collate=TensorCollator(column, tuple(shape)),
        settings=settings_of(workload, together, numbers),
    )
