"""What one client's update tells of its examples: the inputs of a layer span what training adds to LoRA's A.

A step adds to A, (r, H), sums of its tokens' inputs, each times a number (with AdamW, each element scaled besides). So
the rows of the change lie near the inputs of the client's own tokens, and an input that is not one of these leaves a
larger residual when it is projected onto them. The projection needs the update and the proxy, nothing else.

Legend: `r` LoRA's rank, `H` features, `B` batch, `T` tokens.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

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


def spans(model: AdaptedModel, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the module of each LoRA's A and the `span_of` what an update changed in it; none where nothing changed.

    Args:
        model: the proxy with the update in it.
        before: LoRA's A by name, as they were sent.

    """
    changes = {name: p.detach() - before[name] for name, p in model.named_parameters() if name in before}
    found = {name.removesuffix(".weight"): span_of(change) for name, change in changes.items()}
    return {module: basis for module, basis in found.items() if len(basis)}


@torch.no_grad()
def span_scores(model: AdaptedModel, bases: Mapping[str, Tensor], batch: Mapping[str, Any]) -> Tensor:
    """Return how far each example's inputs lie in what an update changed, (B,): the mean over tokens and layers.

    Args:
        model: the proxy with the update in it, in evaluation mode.
        bases: of `spans`.
        batch: model inputs, without labels.

    """
    shares: list[Tensor] = []
    mask = batch.get("attention_mask")
    with ExitStack() as stack:
        for name, basis in bases.items():
            hook = model.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, basis=basis: shares.append(_of_examples(inputs[0], basis, mask))
            )
            stack.callback(hook.remove)
        model(**batch)
    return torch.stack(shares).mean(dim=0)


def _of_examples(inputs: Tensor, basis: Tensor, mask: Tensor | None) -> Tensor:
    shares = explained_share(inputs, basis)
    real = torch.ones_like(shares) if mask is None or mask.shape != shares.shape else mask.double()
    return (shares * real).flatten(1).sum(1) / real.flatten(1).sum(1)
