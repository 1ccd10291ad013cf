"""A model's feed-forward networks (FFNs), and how to read and cut their neurons.

Where each family keeps them is a table, `fedpft.models.families`. Shapes: `H` hidden size, `N` neurons of one FFN.
Neuron j is row j of `up` (and `gate`), entry j of their biases and column j of `down`, in `nn.Linear` terms; GPT-2's
`Conv1D` stores the transpose, which this module hides.
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpft.models.families import FFNLocation, known_family
from fedpft.models.quantized_linear import QuantizedLinear


@dataclass(frozen=True)
class FFN:
    """One layer's FFN, as live references into a model; of projections with LoRA, the frozen ones inside."""

    index: int
    """Layer number, from 0."""
    layer: nn.Module
    """The whole transformer layer; its output is `H_l`, shape (B, T, H)."""
    up: nn.Module
    down: nn.Module
    gate: nn.Module | None
    """The same module as `up` where both are one projection."""
    output_norm: nn.Module | None
    output_scale: Tensor | float | None
    closing_norm: nn.Module | None
    dropout: nn.Module | None

    @property
    def num_neurons(self) -> int:
        """N."""
        return self.down.in_features if isinstance(self.down, QuantizedLinear) else self.down_weight.shape[1]

    @property
    def up_weight(self) -> Tensor:
        """(N, H) view."""
        return _as_linear(self.up)[-self.num_neurons :]

    @property
    def gate_weight(self) -> Tensor | None:
        """(N, H) view, or None for an ungated FFN."""
        return None if self.gate is None else _as_linear(self.gate)[: self.num_neurons]

    @property
    def down_weight(self) -> Tensor:
        """(H, N) view."""
        return _as_linear(self.down)

    def contribution(self, output: Tensor) -> Tensor:
        """Return what joins the residual stream, (..., H), of an output of `down`, (..., H); without dropout."""
        normed = output if self.output_norm is None else self.output_norm(output)
        return normed if self.output_scale is None else normed * self.output_scale

    @property
    def output_gain(self) -> Tensor | None:
        """(H,): what :meth:`contribution` multiplies an output of root mean square 1 with; None: it is the output."""
        if self.output_norm is None and self.output_scale is None:
            return None
        return self.contribution(torch.ones_like(self.down_weight[:, 0]))

    @property
    def output_weight(self) -> Tensor:
        """(H, N): what each neuron adds to the residual stream, up to a factor of the token where there is a norm."""
        gain = self.output_gain
        return self.down_weight if gain is None else gain[:, None] * self.down_weight

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return all that alignment may train, e.g. `up.weight`: projections, biases and norms at the output."""
        parts = {
            "up": self.up,
            "gate": None if self.gate is self.up else self.gate,
            "down": self.down,
            "output_norm": self.output_norm,
            "closing_norm": self.closing_norm,
        }
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            if module is not None
            for name, parameter in module.named_parameters()
        }

    def parameters(self) -> list[nn.Parameter]:
        """Return the values of :meth:`named_parameters`."""
        return list(self.named_parameters().values())

    def neuron_axes(self) -> list[tuple[nn.Parameter, int]]:
        """Return each parameter that has a neuron axis, with that axis (`down.bias` and the norms have none).

        In a projection that is gate and `up` in one, the axis has all neurons twice, one half after the other.
        """
        axes = []
        for module in (self.up, None if self.gate is self.up else self.gate):
            if module is not None:
                axes.append((module.weight, 1 if isinstance(module, Conv1D) else 0))
                if module.bias is not None:
                    axes.append((module.bias, 0))
        axes.append((self.down.weight, 0 if isinstance(self.down, Conv1D) else 1))
        return axes  # type: ignore[return-value]  # nn.Module attributes are typed as Tensor | Module

    @torch.no_grad()
    def keep_neurons(self, neurons: Tensor) -> None:
        """Cut the FFN down to `neurons`, a (r,) tensor of indices, in that order."""
        for parameter, values in self.cut(neurons):
            # assigned through .data: every reference to the parameter, this table's included, sees the smaller tensor
            parameter.data = values
        self.note_sizes()

    @torch.no_grad()
    def cut(self, neurons: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Return each parameter that has a neuron axis, with a copy of what these `neurons`, (r,), have of it."""
        found = []
        for parameter, axis in self.neuron_axes():
            halves = [neurons + first for first in range(0, parameter.shape[axis], self.num_neurons)]
            values = parameter.data.index_select(axis, torch.cat(halves).to(parameter.device)).contiguous()
            found.append((parameter, values))
        return found

    def note_sizes(self) -> None:
        """Let the projections say how many neurons their weights have."""
        for module in (self.up, self.gate):
            if isinstance(module, Conv1D):
                module.nf = module.weight.shape[1]
            elif module is not None:
                module.out_features = _as_linear(module).shape[0]  # type: ignore[assignment]
        if isinstance(self.down, Conv1D):
            self.down.nx = self.num_neurons
        else:
            self.down.in_features = self.num_neurons  # type: ignore[assignment]


def find_backbone(model: nn.Module) -> PreTrainedModel:
    """Return the transformer without its task head, also from inside a PEFT or Lightning wrapper.

    Raises:
        ValueError: the module contains no transformers model.

    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return cast(PreTrainedModel, module.base_model)
    raise ValueError(f"no transformers model inside {type(model).__name__}")


def ffn_location(model: nn.Module) -> FFNLocation:
    """Return the table row of a model's family, or of its variant of it.

    Raises:
        ConfigError: as :func:`known_family`.

    """
    backbone = find_backbone(model)
    row = known_family(backbone.config.model_type, type(backbone).__name__)
    if row.variant is not None and getattr(backbone.config, row.variant[0]):
        return row.variant[1]
    return row


def find_ffns(model: nn.Module) -> list[FFN]:
    """Return the FFNs of a model, one a layer, in layer order.

    Raises:
        ConfigError: unknown model family.

    """
    location, backbone = ffn_location(model), find_backbone(model)

    def part(layer: nn.Module, path: str | None) -> Any:
        found = None if path is None else attrgetter(path)(layer)
        return getattr(found, "base_layer", found)  # what PEFT wraps

    return [
        FFN(
            index=index,
            layer=layer,
            up=part(layer, location.up),
            down=part(layer, location.down),
            gate=part(layer, location.gate),
            output_norm=part(layer, location.output_norm),
            output_scale=part(layer, location.output_scale),
            closing_norm=part(layer, location.closing_norm),
            dropout=part(layer, location.dropout),
        )
        for index, layer in enumerate(attrgetter(location.layers)(backbone))
    ]


def num_transformer_parameters(model: nn.Module) -> int:
    """Count the parameters of the transformer layers alone, without embeddings, head and adapters (the paper's way)."""
    layers = (ffn.layer for ffn in find_ffns(model))
    return sum(p.numel() for layer in layers for name, p in layer.named_parameters() if "lora_" not in name)


def _as_linear(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight
