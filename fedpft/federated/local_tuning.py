"""What a client trains: the proxy's adapter, as a LightningModule."""

from collections.abc import Mapping

import lightning as L
import torch
from torch import Tensor, nn

from fedpft.models.lora import adapter_parameters, split_adapter


class LocalTuningModule(L.LightningModule):
    """Supervised tuning of a proxy's adapter on one client's labelled data.

    Args:
        proxy: a model with an adapter that returns `.loss` when the batch has `labels`.
        lr: learning rate; the round's, set before each fit.
        head_lr_ratio: learning rate of the task head over `lr`.
        weight_decay: AdamW's, on all adapter tensors.

    """

    def __init__(
        self, proxy: nn.Module, *, lr: float = 0.0, head_lr_ratio: float = 1.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        self.proxy = proxy
        self.lr, self.head_lr_ratio, self.weight_decay = lr, head_lr_ratio, weight_decay

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Return the mean loss of a labelled batch."""
        return self.proxy(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the adapter, fresh for every fit."""
        lora, head = split_adapter(adapter_parameters(self.proxy))
        groups = [{"params": lora, "lr": self.lr}, {"params": head, "lr": self.lr * self.head_lr_ratio}]
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay)
