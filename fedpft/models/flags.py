"""What a computation on a model may switch, and must give back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def restored_flags(*models: nn.Module) -> Iterator[None]:
    """Give back every parameter's `requires_grad` and `grad` and every module's mode at the end of the block.

    The block begins without gradients, so that none is accumulated into those to be given back. It may move the models
    to another device: their gradients follow them. Within it no decoder keeps keys and values.
    """
    caching = [config for model in models for config in _caching(model)]
    parameters = [(p, p.requires_grad, p.grad) for model in models for p in model.parameters()]
    modes = [(module, module.training) for model in models for module in model.modules()]
    for parameter, _, _ in parameters:
        parameter.grad = None
    for model in models:
        keep_no_keys(model)
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True
        for parameter, trainable, gradient in parameters:
            parameter.requires_grad_(trainable)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        for module, mode in modes:
            module.training = mode


def keep_no_keys(model: nn.Module) -> None:
    """Let a decoder keep no keys and values for tokens to come, in place: nobody generates a text.

    They would be copied in every layer, and with a sliding window a GPU is waited for. Outputs stay the same.
    """
    for config in _caching(model):
        config.use_cache = False


def _caching(model: nn.Module) -> list[Any]:
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    return [config for config in configs.values() if getattr(config, "use_cache", False)]
