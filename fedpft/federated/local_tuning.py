"""What a client trains: the proxy's adapter, as a LightningModule."""

from collections.abc import Mapping

import lightning as L
import torch
from torch import Tensor, nn

from fedpft.models.lora import adapter_parameters


class LocalTuningModule(L.LightningModule):
    """Supervised tuning of a proxy's adapter on one client's labelled data.

    Args:
        proxy: a model with an adapter that returns `.loss` when the batch has `labels`.
        lr: learning rate; the round's, set before each fit.
        weight_decay: AdamW's, on all adapter tensors.

    """

    def __init__(self, proxy: nn.Module, *, lr: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.proxy = proxy
        self.lr, self.weight_decay = lr, weight_decay

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Return the mean loss of a labelled batch."""
        return self.proxy(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the adapter, fresh for every fit."""
        parameters = list(adapter_parameters(self.proxy).values())
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
