"""What one client's update tells of its examples: the inputs of a layer span what training adds to LoRA's A.

A step adds to A, (r, H), sums of its tokens' inputs, each times a number (with AdamW, each element scaled besides). So
the rows of the change lie near the inputs of the client's own tokens, and an input that is not one of these leaves a
larger residual when it is projected onto them. The projection needs the update and the proxy, nothing else.

Legend: `r` LoRA's rank, `H` features, `B` batch, `T` tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fedpft.models.lora import AdaptedModel


def span_of(change: Tensor) -> Tensor:
    """Return an orthonormal basis, (rank, H), of the rows of a change of A, (r, H)."""
    _, values, rows = torch.linalg.svd(change.double(), full_matrices=False)
    precision = torch.finfo(change.dtype).eps * max(change.shape)
    return rows[values > precision * values.max()] if values.max() > 0 else rows[:0]


def explained_share(inputs: Tensor, basis: Tensor) -> Tensor:
    """Return of each input, (..., H), which part of its square lies in a basis' span, (...): 1 minus the residual."""
    inputs = inputs.double()
    return (inputs @ basis.T).square().sum(-1) / inputs.square().sum(-1).clamp_min(torch.finfo(torch.float64).tiny)


@torch.no_grad()
def span_scores(model: AdaptedModel, before: Mapping[str, Tensor], batch: Mapping[str, Any]) -> Tensor:
    """Return how far each example's inputs lie in what an update changed, (B,): the mean over tokens and layers.

    Args:
        model: the proxy with the update in it, in evaluation mode.
        before: LoRA's A by name, as they were sent.
        batch: model inputs, without labels.

    """
    shares: list[Tensor] = []
    mask = batch.get("attention_mask")
    with ExitStack() as stack:
        for name, change in changes_of_a(model, before):
            if len(basis := span_of(change)):
                module = model.get_submodule(name.removesuffix(".weight"))
                hook = module.register_forward_pre_hook(
                    lambda _, inputs, basis=basis: shares.append(_of_examples(inputs[0], basis, mask))
                )
                stack.callback(hook.remove)
        model(**batch)
    return torch.stack(shares).mean(dim=0)


def changes_of_a(model: nn.Module, before: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each A and what an update added to it, (r, H)."""
    for name, parameter in model.named_parameters():
        if name in before:
            yield name, parameter.detach() - before[name]


def _of_examples(inputs: Tensor, basis: Tensor, mask: Tensor | None) -> Tensor:
    shares = explained_share(inputs, basis)
    real = torch.ones_like(shares) if mask is None or mask.shape != shares.shape else mask.double()
    return (shares * real).flatten(1).sum(1) / real.flatten(1).sum(1)
