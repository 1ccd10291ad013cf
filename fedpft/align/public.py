"""What every alignment reads and reports."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from fedpft.config import ServerConfig
from fedpft.trainer import StepReport


@dataclass(frozen=True, kw_only=True)
class PublicData:
    """Unlabelled public examples and how to make a batch of them."""

    dataset: Dataset[Any]
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]
    identity: Callable[[], Mapping[str, Any]] | None = None
    """Returns all that the batches depend on, as JSON; None: unknown, so that nothing made from them can be cached."""

    def batches(self, num_examples: int, batch_size: int, seed: int) -> "PublicBatches":
        """Return batches of model inputs, without labels, of at most `num_examples` different examples."""
        order = np.random.default_rng(seed).permutation(len(self.dataset))[:num_examples]  # type: ignore[arg-type]
        return PublicBatches(self, [order[start : start + batch_size] for start in range(0, len(order), batch_size)])


class PublicBatches:
    """Batches in a fixed order, each of which is made when it is asked for: none waits in memory.

    Args:
        public: where they come from.
        parts: the rows of each.

    """

    def __init__(self, public: PublicData, parts: Sequence[np.ndarray]) -> None:
        self._public, self._parts = public, parts

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        for rows in self._parts:
            batch = self._public.collate([self._public.dataset[int(row)] for row in rows])
            yield {name: value for name, value in batch.items() if name != "labels"}


@dataclass(frozen=True, kw_only=True)
class AlignmentContext:
    """What every alignment is given beside the models and its own settings."""

    public: PublicData
    server: ServerConfig
    """Device, precision, threads."""
    seed: int
    """Of the draw of examples, and of dropout."""
    on_step: StepReport | None = None
    """Hears of every step."""


@dataclass(frozen=True, kw_only=True)
class AlignmentReport:
    """The loss where an alignment began and ended: mean L1 (and `product_weight` L2) over the aligned layers."""

    first_loss: float
    last_loss: float
    """Of a distillation the batch's in the first and in the last step; else the same as the next two."""
    measured_before: float
    measured_after: float
    """On the same examples before and after, in eval mode and float32. A closed form never fits to them. A distillation
    may also draw them for a step: it goes through all public examples in turn, and keeps none of them back."""
