"""Where a model lies, and how numbers get there."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def is_spread(model: nn.Module) -> bool:
    """Whether a model's parameters lie on several GPUs, where they then stay (`fedpft.models.spread`)."""
    return len({parameter.device for parameter in model.parameters() if parameter.is_cuda}) > 1


def sent_to(device: torch.device, numbers: Sequence[float]) -> Tensor:
    """Return numbers that the CPU knows as a tensor on a device, integers as int64; a GPU is not waited for.

    `torch.tensor(numbers, device=device)` waits until a GPU has done all its work, and so does a list as an index.
    """
    return torch.tensor(numbers).to(device, non_blocking=True)
