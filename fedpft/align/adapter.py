"""Distillation of the FM's adapter towards the tuned proxy: what clients tuned on the proxy is carried over.

An adapter that was tuned on the proxy meets other hidden states in the FM, and loses by it. Here the FM's adapter, LoRA
and head, takes a few steps on public inputs without labels, until the FM says what the tuned proxy says. It reads only
what the server has anyway, so it costs no privacy. The targets are outputs, as in Hinton et al. 2015 (arXiv
1503.02531), and logits are compared by their squared error (Ba and Caruana 2014, arXiv 1312.6184).

Acceptance needs no labels either: on public inputs that no step saw, the FM must have come nearer to the proxy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from fedpft.align.distill import distil
from fedpft.align.distillation import Distillation
from fedpft.align.losses import hidden_state_loss
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import AdapterAlignConfig
from fedpft.models.ffn import find_backbone
from fedpft.models.lora import AdaptedModel, adapter_parameters, get_adapter, set_adapter
from fedpft.models.target_logits import is_language_model


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """How far the FM's outputs are from the proxy's, on held-out public inputs."""

    copied_loss: float
    """With the proxy's adapter as it is."""
    distilled_loss: float
    """With the distilled one."""

    @property
    def accepted(self) -> bool:
        """Whether the distilled adapter is the nearer one, and so the one that the FM has now."""
        return self.distilled_loss < self.copied_loss


class AdapterModule(Distillation):
    """Teacher = the tuned proxy, student = the FM: trains the FM's adapter, without dropout.

    Args:
        teacher, student: with an adapter each; the student's is where the distillation starts.
        settings: `lr, num_steps`, see :class:`Distillation`.

    """

    def __init__(self, teacher: AdaptedModel, student: AdaptedModel, **settings: Any) -> None:
        super().__init__(teacher, student, **settings)
        self._trained = list(adapter_parameters(student).values())

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the FM's LoRA and head."""
        return self._trained

    def active_modules(self) -> list[nn.Module]:
        """Return nothing: all dropout is off."""
        return []

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Return :func:`output_loss` of one unlabelled batch."""
        return output_loss(self.teacher, self.student, batch)


def align_adapter(
    fm: AdaptedModel,
    proxy: AdaptedModel,
    config: AdapterAlignConfig,
    context: AlignmentContext,
) -> AdapterReport:
    """Distil the FM's adapter towards the proxy's outputs, in place; nothing else in either model changes.

    Args:
        fm: carries the proxy's adapter; ends with the distilled one, or unchanged if that is not nearer to the proxy.
        proxy: carries the tuned adapter.

    """
    train, held_out = _split(context.public, config.held_out_examples, context.seed)
    copied = get_adapter(fm)
    module = AdapterModule(proxy, fm, lr=config.lr, num_steps=config.num_steps)
    losses = distil(module, config, replace(context, public=train), held_out)
    report = AdapterReport(copied_loss=losses.measured_before, distilled_loss=losses.measured_after)
    if not report.accepted:
        set_adapter(fm, copied)
    return report


def output_loss(teacher: nn.Module, student: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the squared error of the student's outputs, relative to the teacher's, on one batch without labels.

    The outputs are the logits, and their scale is the variance over the batch. A language model's are the hidden states
    that its head reads, at real tokens, relative to their mean square: its head is the same in both, and thousands of
    logits a token say no more than what they are made of.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if is_language_model(student):
        with torch.no_grad():
            target = find_backbone(teacher)(**inputs).last_hidden_state.float()
        found = find_backbone(student)(**inputs).last_hidden_state.float()
        return hidden_state_loss(target, found, inputs.get("attention_mask"))
    with torch.no_grad():
        target = teacher(**inputs).logits.float()
    return (student(**inputs).logits.float() - target).square().mean() / target.var(correction=0)


def _split(public: PublicData, num_held_out: int, seed: int) -> tuple[PublicData, PublicData]:
    """Return public data to train on, and at most a quarter of all, drawn by the seed, to judge by."""
    size = len(public.dataset)  # type: ignore[arg-type]  # has __len__
    order = np.random.default_rng(seed).permutation(size)
    cut = min(num_held_out, size // 4)
    train, held_out = (Subset(public.dataset, part.tolist()) for part in (order[cut:], order[:cut]))
    return replace(public, dataset=train), replace(public, dataset=held_out)
