"""What every place that plays clients is given before the first round: the proxy and the data, nothing of the FM."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from fedpft.data.collate import text_lengths
from fedpft.data.partition import Partition
from fedpft.data.shared import SharedRows, opened
from fedpft.federated.grouping import most_together
from fedpft.federated.messages import LocalSettings
from fedpft.federated.step_costs import StepCosts
from fedpft.models.weights import PackedModel

_NUM_STEPS = 2
"""Of the hungriest client: from the second one on gradients, moments and activations are there together."""


@dataclass(frozen=True, kw_only=True)
class ClientPackage:
    """What every place needs before the first round; broadcast once."""

    proxy: PackedModel
    watched_layers: tuple[int, ...]
    """FFNs whose activations are counted when a plan asks for it: the compressed ones."""
    train: Dataset | SharedRows
    """The rows of all clients; or how a place reads them."""
    partition: Partition
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]
    settings: LocalSettings
    ranks: Mapping[int, int] = field(default_factory=dict)
    """client_id -> LoRA's rank for this client, where it is below the adapter's."""
    step_costs: StepCosts | None = None
    """For the client's own account of what it spent; None: there is none."""


def hungriest(package: ClientPackage) -> ClientPackage:
    """Return the package with one client, who owns the longest examples, enough for two steps.

    Where clients train together, as many of him as that; not for an `auto` that looks at the RAM itself.
    """
    train = opened(package.train)
    settings, lengths = package.settings, text_lengths(train)
    if lengths is None:
        lengths = np.zeros(len(train))
    longest = np.argsort(lengths, kind="stable")[::-1][: _NUM_STEPS * settings.batch_size]
    looks_itself = settings.clients_per_batch == "auto" and settings.keeps_bits
    num_clients = 1 if looks_itself else most_together(settings)
    return replace(
        package,
        partition=Partition.of_sizes(np.tile(longest, num_clients), np.full(num_clients, len(longest))),
        settings=replace(settings, num_epochs=1),
    )
