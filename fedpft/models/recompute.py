"""Activations that are computed again in the backward pass instead of kept: one more forward pass for much less memory.

Of each layer only its input stays until its turn comes (Chen et al. 2016, arXiv 1604.06174). Transformers can do so
itself, but not for every family (MPNet).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from fedpft.models.ffn import find_ffns
from fedpft.models.flags import keep_no_keys


def recompute_layers(model: nn.Module) -> None:
    """Let every layer of a model that is in training mode compute its activations again, in place.

    Gradients are the same; random draws of the first time are repeated.
    """
    keep_no_keys(model)  # those that a layer appends to would be there twice
    for layer in (ffn.layer for ffn in find_ffns(model)):
        kind = type(layer)
        layer.__class__ = type(kind.__name__, (_Recomputed, kind), {})


def recomputed_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that do so, in order; a model may be of any kind."""
    return [module for module in model.modules() if isinstance(module, _Recomputed)]


@contextmanager
def keeping_activations() -> Iterator[None]:
    """Let all layers keep their activations within the block."""
    _Recomputed.is_on = False
    try:
        yield
    finally:
        _Recomputed.is_on = True


@contextmanager
def recomputing_within(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Let what layers compute again be computed within this context, which may be entered many times.

    A backward pass does not know of the modes of torch that were on when it began.
    """
    _Recomputed.context = context
    try:
        yield
    finally:
        _Recomputed.context = nullcontext()


class _Recomputed(nn.Module):
    """Comes before a layer's class."""

    is_on = True
    context: AbstractContextManager[Any] = nullcontext()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and _Recomputed.is_on):
            return super().forward(*args, **kwargs)
        contexts = nullcontext(), _Recomputed.context
        return checkpoint(super().forward, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)
