"""What a computation on a model may switch, and must give back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def restored_flags(*models: nn.Module) -> Iterator[None]:
    """Give back every parameter's `requires_grad` and `grad` and every module's mode at the end of the block.

    The block begins without gradients, so that none is accumulated into those to be given back. It may move the models
    to another device: their gradients follow them.
    """
    parameters = [(p, p.requires_grad, p.grad) for model in models for p in model.parameters()]
    modes = [(module, module.training) for model in models for module in model.modules()]
    for parameter, _, _ in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, trainable, gradient in parameters:
            parameter.requires_grad_(trainable)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        for module, mode in modes:
            module.training = mode
