"""Stand-ins for what the round loop and the evaluator work with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedpft.config import LoraConfig
from fedpft.construct.compress import compress
from fedpft.models.lora import attach_lora, set_adapter
from tests.tiny import tiny_fm


class FakeTracker:
    """Remembers the records of rounds, and the rows of clients with their round."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.clients: list[tuple[int, Sequence[Mapping[str, Any]]]] = []

    def log_round(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.clients.append((round_index, rows))


class FakeMethod:
    """A tiny FM and its sub-FM, both with an adapter."""

    def __init__(self, num_labels: int = 3) -> None:
        fm = tiny_fm("bert", num_labels=num_labels, seed=3)
        sub_fm, _ = compress(fm, retained_ratio=0.25)
        self.fm, self.sub_fm = (attach_lora(model, LoraConfig(rank=2), seed=0) for model in (fm, sub_fm))

    def plug_in(self, adapter: np.ndarray) -> Any:
        set_adapter(self.fm, adapter)
        return self.fm

    def proxy_with(self, adapter: np.ndarray) -> Any:
        set_adapter(self.sub_fm, adapter)
        return self.sub_fm
