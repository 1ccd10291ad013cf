"""Metrics of a model on a whole labelled data set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from lightning import Fabric
from torch import Tensor
from torchmetrics import Metric

from fedpft.config import ServerConfig
from fedpft.data.collate import prepared_rows, text_lengths
from fedpft.metrics.table import METRICS, computed
from fedpft.metrics.tokens import takes_targets
from fedpft.models.flags import restored_flags
from fedpft.models.lora import AdaptedModel
from fedpft.models.target_logits import target_logits
from fedpft.trainer import StepReport, server_fabric


@torch.no_grad()
def evaluate(
    model: AdaptedModel,
    dataset: Dataset,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    *,
    metrics: Sequence[str],
    batch_size: int,
    server: ServerConfig,
    counts: Metric | None = None,
    on_step: StepReport | None = None,
) -> dict[str, float]:
    """Return the metrics over every example, in the order asked for; the model's mode and weights do not change.

    Args:
        model: returns `.logits` of shape (B, classes), or (B, 1) for regression.
        dataset: rows that `collate` turns into a batch with `labels`.
        metrics: names in `fedpft.metrics.table.METRICS`.
        batch_size: examples per forward pass; texts are grouped by length, which saves padding and changes no count.
        server: device and precision.
        counts: also updated with the logits and labels of every batch; the caller computes it.
        on_step: hears about every batch.

    """
    fabric = server_fabric(server, mixed=True)
    made = {name: METRICS[name].make(model.config.num_labels).to(fabric.device) for name in metrics}
    updated = [*made.values(), *([counts.to(fabric.device)] if counts is not None else [])]
    of_targets = bool(updated) and all(map(takes_targets, updated))
    for _, logits, labels in _answers(model, dataset, collate, batch_size, fabric, on_step, of_targets=of_targets):
        for metric in updated:
            metric.update(logits, labels)
    return {name: computed(metric, METRICS[name]) for name, metric in made.items()}


@torch.no_grad()
def is_right(
    model: AdaptedModel,
    dataset: Dataset,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    *,
    batch_size: int,
    server: ServerConfig,
    on_step: StepReport | None = None,
) -> np.ndarray:
    """Return (examples,) bool: whether a classifier gives each its label; arguments as of :func:`evaluate`."""
    found = np.zeros(len(dataset), dtype=bool)
    fabric = server_fabric(server, mixed=True)
    for indices, logits, labels in _answers(model, dataset, collate, batch_size, fabric, on_step):
        found[indices] = (logits.argmax(-1) == labels).cpu().numpy()
    return found


def _answers(
    model: AdaptedModel,
    dataset: Dataset,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    batch_size: int,
    fabric: Fabric,
    on_step: StepReport | None,
    *,
    of_targets: bool = False,
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield rows, logits and labels, batch by batch, until every example had its turn.

    Of a language model's batch it may be some targets at a time, (n, vocabulary) and (n,), if metrics take them so.
    """
    fabric.to_device(model)
    order = _by_length(dataset)
    with restored_flags(model):
        model.eval()
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = fabric.to_device(dict(collate(prepared_rows(dataset, indices, collate))))
            labels = batch.pop("labels")
            if of_targets:
                for logits, targets in target_logits(model, batch, labels, fabric.autocast):
                    yield indices, logits, targets
            else:
                with fabric.autocast():
                    logits = model(**batch).logits
                yield indices, logits, labels
            if on_step is not None:
                on_step(min(start + batch_size, len(order)), len(order), {})


def _by_length(dataset: Dataset) -> np.ndarray:
    lengths = text_lengths(dataset)
    return np.arange(len(dataset)) if lengths is None else np.argsort(lengths, kind="stable")
