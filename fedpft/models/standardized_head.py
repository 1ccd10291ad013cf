"""A task head that reads standardized features while it is tuned, and is a plain one before and after.

An FM's pooled features have a large part in common and differ by little, so a head on them is ill-conditioned: it takes
many steps, or long ones, and where a client's update is clipped and gets noise, most of both goes into that common
part. In standardized coordinates a head of the same functions learns in a few steps (feature normalization with public
statistics: Tramèr and Boneh 2021, arXiv 2011.11660).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from fedpft.config import ConfigError
from fedpft.models.head import head_modules
from fedpft.models.precision import head_in_float32

SMALLEST = 0.1
"""Of the root mean square of all standard deviations, what a feature's counts for at least."""


class StandardizedLinear(nn.Linear):
    """`weight @ ((x - mean) / scale) + bias`."""

    mean: Tensor
    """(in_features,)."""
    scale: Tensor
    """(in_features,), positive."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) of (..., in_features)."""
        return F.linear((input - self.mean) / self.scale, self.weight, self.bias)


def first_head_layer(model: PreTrainedModel) -> nn.Linear:
    """Return the layer of the task head that reads the backbone's features.

    Raises:
        ConfigError: there is none, or it has no bias, so that it cannot take over a mean.

    """
    prefix = f"{model.base_model_prefix}."
    names = sorted(head_modules(model), key=lambda name: not name.startswith(prefix))  # a new pooler comes first
    layers = [layer for name in names for layer in model.get_submodule(name).modules() if isinstance(layer, nn.Linear)]
    if not layers or layers[0].bias is None:
        head = f"a head whose first layer has no bias ({type(model).__name__})" if layers else "an FM without task head"
        raise ConfigError(f"federated.head_inputs: found standardized for {head}, allowed: raw")
    return layers[0]


@torch.no_grad()
def standardize_head(model: PreTrainedModel, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a model's head read standardized features, in place; its outputs do not change but for rounding in float32.

    What is made of the model later, a sub-FM or one with an adapter, has the same head.

    Args:
        model: plain, with a task head; the head is float32 from then on.
        mean, std: of each of the features.

    Raises:
        ConfigError: see :func:`first_head_layer`.

    """
    head_in_float32(model)
    center, spread = torch.tensor([mean, std], dtype=torch.float64)
    standardize(first_head_layer(model), center, spread)


@torch.no_grad()
def standardize(layer: nn.Linear, mean: Tensor, std: Tensor) -> None:
    """Let a layer read standardized inputs, in place; it goes on computing the same function.

    Args:
        layer: with a bias.
        mean, std: of its inputs, (in_features,) float64.

    """
    scale = std.clamp_min(SMALLEST * float(std.square().mean().sqrt()))
    mean, scale, weight = mean.to(layer.weight), scale.to(layer.weight), layer.weight.double()
    layer.bias.add_(weight @ mean.double())
    layer.weight.copy_(weight * scale)
    layer.register_buffer("mean", mean, persistent=False)
    layer.register_buffer("scale", scale, persistent=False)
    layer.__class__ = StandardizedLinear  # parameters and hooks stay what they are


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Make every :class:`StandardizedLinear` of a model a plain layer of the same function, in place."""
    for layer in [module for module in model.modules() if isinstance(module, StandardizedLinear)]:
        weight = layer.weight.double() / layer.scale
        layer.bias.sub_(weight @ layer.mean.double())
        layer.weight.copy_(weight)
        del layer.mean, layer.scale
        layer.__class__ = nn.Linear  # type: ignore[assignment]
