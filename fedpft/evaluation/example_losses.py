"""The loss of each single example, which is what membership is guessed from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from fedpft.config import ServerConfig, TaskKind
from fedpft.data.collate import rows
from fedpft.metrics.tokens import IGNORED
from fedpft.models.flags import restored_flags
from fedpft.models.lora import AdaptedModel
from fedpft.models.target_logits import target_logits
from fedpft.trainer import server_fabric


@torch.no_grad()
def example_losses(
    model: AdaptedModel,
    dataset: Dataset,
    chosen: Sequence[int] | np.ndarray,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    *,
    kind: TaskKind,
    batch_size: int,
    server: ServerConfig,
) -> np.ndarray:
    """Return the loss of each chosen example, (n,) float64, in their order; of a language model a target token's mean.

    Args:
        model: its mode and weights do not change.
        dataset: rows that `collate` turns into a batch with `labels`.
        chosen: rows.
        collate: the task's.
        kind: of task.
        batch_size: examples of a forward pass.
        server: device.

    """
    fabric = server_fabric(server)
    fabric.to_device(model)
    parts = []
    with restored_flags(model):
        model.eval()
        for start in range(0, len(chosen), batch_size):
            batch = fabric.to_device(dict(collate(rows(dataset, chosen[start : start + batch_size]))))
            labels = batch.pop("labels")
            parts.append(losses_of(model, batch, labels, kind).double().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros(0)


def losses_of(model: Any, inputs: Mapping[str, Tensor], labels: Tensor, kind: TaskKind) -> Tensor:
    """Return the loss of each example of a batch, (B,)."""
    if kind == "regression":
        return mse_loss(model(**inputs).logits[:, 0].float(), labels.float(), reduction="none")
    if kind == "classification":
        return cross_entropy(model(**inputs).logits.float(), labels, reduction="none")
    is_target = labels[:, 1:] != IGNORED
    of_tokens = torch.zeros(is_target.shape, device=labels.device)
    parts = [cross_entropy(*chunk, reduction="none") for chunk in target_logits(model, inputs, labels)]
    of_tokens[is_target] = torch.cat(parts)
    return of_tokens.sum(dim=1) / is_target.sum(dim=1).clamp_min(1)
