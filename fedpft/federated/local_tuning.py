"""What a client trains: the proxy's adapter, as a LightningModule."""

from collections.abc import Mapping

import lightning as L
from torch import Tensor, nn


class LocalTuningModule(L.LightningModule):
    """Supervised tuning of a proxy's adapter on labelled data.

    Args:
        proxy: a model with an adapter that returns `.loss` when the batch has `labels`.

    """

    def __init__(self, proxy: nn.Module) -> None:
        super().__init__()
        self.proxy = proxy

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Return the mean loss of a labelled batch; within `Together`, (K,), that of each client's."""
        return self.proxy(**batch).loss
