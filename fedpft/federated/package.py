"""What every place that plays clients is given before the first round: the proxy and the data, nothing of the FM."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from torch import Tensor

from fedpft.data.partition import Partition
from fedpft.data.shared import SharedRows
from fedpft.federated.messages import LocalSettings
from fedpft.federated.step_costs import StepCosts
from fedpft.models.weights import PackedModel


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
