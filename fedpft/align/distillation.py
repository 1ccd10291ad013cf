"""What every distillation of a proxy towards the FM has in common, as a LightningModule."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from fedpft.align.losses import at_tokens
from fedpft.attention_mask import real_tokens
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import find_backbone
from fedpft.models.quantized_linear import without_bitsandbytes

with without_bitsandbytes():  # transformers' schedules import its trainer, and that peft
    from transformers import get_linear_schedule_with_warmup


class Distillation(L.LightningModule, ABC):
    """Teacher = FM, student = its proxy: trains a part of the student towards the teacher's hidden states.

    A subclass says which part, by :meth:`trained_parameters` and :meth:`active_modules`, and what the loss is.

    Args:
        teacher, student: models of the same family; the student may carry an adapter (then so must the teacher, the
            same one).
        lr: the largest of the linear warm-up and decay.
        num_steps: optimiser steps, warm-up included.
        num_warmup_steps: of them.
        weight_decay: on matrices only.

    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        lr: float,
        num_steps: int,
        num_warmup_steps: int = 0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student
        self.lr, self.num_steps, self.num_warmup_steps = lr, num_steps, num_warmup_steps
        self.weight_decay = weight_decay

    @abstractmethod
    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the distillation changes; everything else is frozen."""

    @abstractmethod
    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Return the loss of one unlabelled batch."""

    @abstractmethod
    def active_modules(self) -> list[nn.Module]:
        """Return the modules that are in training mode; all others are in eval mode."""

    def setup(self, stage: str) -> None:
        """Freeze all but the trained parameters; all modules in eval mode but the active ones."""
        self.requires_grad_(False)
        self.eval()
        for parameter in self.trained_parameters():
            parameter.requires_grad_(True)
        for module in self.active_modules():
            module.train()

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_index: int) -> None:
        """Give each of several processes a dropout of its own; the order of the examples was drawn alike in all."""
        if self.trainer.world_size > 1 and batch_index == 0:
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return what is trained alone: that is all that comes back from other processes, by way of a file."""
        trained = {id(parameter) for parameter in self.trained_parameters()}
        names = {name for name, parameter in self.named_parameters() if id(parameter) in trained}
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if name in names}

    def hidden_states(
        self, batch: Mapping[str, Tensor], teacher_layers: Sequence[nn.Module], student_layers: Sequence[nn.Module]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the outputs of each teacher's and student's layer on one unlabelled batch, float32.

        Where the batch has a mask, of its real tokens, (tokens, H); else (B, T, H).
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad(), layer_outputs(teacher_layers) as targets:
            find_backbone(self.teacher)(**inputs)
        with layer_outputs(student_layers) as outputs:
            find_backbone(self.student)(**inputs)
        pairs = [(targets[i], outputs[i]) for i in range(len(outputs))]
        if (mask := batch.get("attention_mask")) is not None:
            rows = real_tokens(mask)
            pairs = [(at_tokens(target, rows), at_tokens(found, rows)) for target, found in pairs]
        return [(target.float().to(found.device), found.float()) for target, found in pairs]

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """AdamW, decay on matrices only; linear warm-up and decay over optimiser steps."""
        parameters = self.trained_parameters()
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        scheduler = get_linear_schedule_with_warmup(optimizer, self.num_warmup_steps, self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
