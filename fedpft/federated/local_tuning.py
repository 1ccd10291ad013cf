"""What a client trains: the proxy's adapter, as a LightningModule."""

from collections.abc import Mapping
from functools import cached_property

import lightning as L
import torch
from torch import Tensor, nn

from fedpft.models.flat_adapter import FlatAdapter


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

    @cached_property
    def adapter(self) -> FlatAdapter:
        """The adapter that is tuned, gathered at first use: the proxy must be on its device by then."""
        return FlatAdapter(self.proxy)

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Return the mean loss of a labelled batch."""
        return self.proxy(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the adapter, fresh for every fit; its gradients are zeroed by `adapter.zero_grad`."""
        groups = [
            {"params": self.adapter.lora, "lr": self.lr},
            {"params": self.adapter.head, "lr": self.lr * self.head_lr_ratio},
        ]
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay)
