"""Pre-training of a `scratch://` FM on public data: a small FM where no hub is reachable."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from fedpft.config import ConfigError, PretrainConfig, ServerConfig
from fedpft.models.flags import restored_flags
from fedpft.seeding import isolated_torch_rng
from fedpft.trainer import StepReport, make_trainer

Collate = Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]
"""Rows -> a batch with labels."""


class PretrainModule(L.LightningModule):
    """Minimises a model's own loss of labelled public examples, all parameters trained, cosine learning rate."""

    def __init__(self, model: PreTrainedModel, *, lr: float, num_steps: int) -> None:
        super().__init__()
        self.model = model
        self.lr, self.num_steps = lr, num_steps

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Return a batch's loss."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """AdamW with cosine decay to zero."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def pretrain_backbone(
    fm: PreTrainedModel,
    public: Dataset,
    collate: Collate,
    *,
    config: PretrainConfig,
    server: ServerConfig,
    seed: int,
    on_step: StepReport | None = None,
) -> None:
    """Train the FM's backbone in place under a temporary head for the public classes; the FM's own head stays new.

    Args:
        public: rows with an integer `label`.

    Raises:
        ConfigError: the public data has no labels.

    """
    if "label" not in public.column_names:
        raise ConfigError(
            f"fm.pretrain.num_epochs: found {config.num_epochs}, but public data {public.column_names} has no label"
        )
    with isolated_torch_rng(seed):
        pretraining_config = copy.deepcopy(fm.config)
        pretraining_config.num_labels = max(public["label"]) + 1
        pretraining_config.problem_type = "single_label_classification"
        model = type(fm)(pretraining_config)
        setattr(model, fm.base_model_prefix, fm.base_model)
        _fit(model, public, collate, config, server, on_step)
    fm.eval()


def pretrain_language_model(
    fm: PreTrainedModel,
    public: Dataset,
    collate: Collate,
    *,
    config: PretrainConfig,
    server: ServerConfig,
    seed: int,
    on_step: StepReport | None = None,
) -> None:
    """Train a whole language model in place to go on with public texts.

    Args:
        public: rows of tokens that `collate` gives labels.

    """
    with isolated_torch_rng(seed):
        _fit(fm, public, collate, config, server, on_step)
    fm.eval()


def _fit(
    model: PreTrainedModel,
    public: Dataset,
    collate: Collate,
    config: PretrainConfig,
    server: ServerConfig,
    on_step: StepReport | None,
) -> None:
    loader = DataLoader(public, batch_size=config.batch_size, shuffle=True, collate_fn=collate)
    num_steps = config.num_epochs * len(loader)
    trainer = make_trainer(server, num_steps=num_steps, on_step=on_step)
    with restored_flags(model):  # and without gradients: they are as large as the model
        model.train()
        trainer.fit(PretrainModule(model, lr=config.lr, num_steps=num_steps), loader)
