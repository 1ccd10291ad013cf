"""Where a model lies."""

from torch import nn


def is_spread(model: nn.Module) -> bool:
    """Whether a model's parameters lie on several GPUs, where they then stay (`fedpft.models.spread`)."""
    return len({parameter.device for parameter in model.parameters() if parameter.is_cuda}) > 1
