"""Where each model family keeps its feed-forward networks (FFNs), and how to read and cut their neurons.

A new family is a row of :data:`FFN_LOCATIONS`, not code. Shapes: `H` hidden size, `N` neurons of one FFN. Neuron j is
row j of `up` (and `gate`), entry j of their biases and column j of `down`, in `nn.Linear` terms; GPT-2's `Conv1D`
stores the transpose, which this module hides.
"""

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpft.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class FFNLocation:
    """Module paths of one family: `layers` from the backbone, the others from a layer."""

    layers: str
    up: str
    down: str
    gate: str | None = None
    """Gated FFNs only: `h = act(gate(x)) * up(x)`."""
    closing_norm: str | None = None
    """Post-LN families only: the LayerNorm that closes the FFN."""
    pre_norm_field: str | None = None
    """Field of the transformers config that, where true, makes a model pre-LN: `closing_norm` then opens the FFN."""
    dropout: str | None = None
    """Dropout at the FFN's output; None where there is none of its own (ViT, DeiT and OPT share one with attention)."""
    between_layers: str | None = None
    """From the backbone: what some models compute between two layers; None in the model: it does not."""
    size_field: str = "intermediate_size"
    """Field of the transformers config that holds N."""


_BERT = FFNLocation(
    layers="encoder.layer",
    up="intermediate.dense",
    down="output.dense",
    closing_norm="output.LayerNorm",
    dropout="output.dropout",
)
_VIT = FFNLocation(layers="layers", up="mlp.fc1", down="mlp.fc2")
_LLAMA = FFNLocation(layers="layers", up="mlp.up_proj", gate="mlp.gate_proj", down="mlp.down_proj")

FFN_LOCATIONS: dict[str, FFNLocation] = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "deberta-v2": replace(_BERT, between_layers="encoder.conv"),
    "distilbert": FFNLocation(
        layers="transformer.layer",
        up="ffn.lin1",
        down="ffn.lin2",
        closing_norm="output_layer_norm",
        dropout="ffn.dropout",
        size_field="hidden_dim",
    ),
    "vit": _VIT,
    "deit": _VIT,
    "gpt2": FFNLocation(layers="h", up="mlp.c_fc", down="mlp.c_proj", dropout="mlp.dropout", size_field="n_inner"),
    "opt": FFNLocation(
        layers="decoder.layers",
        up="fc1",
        down="fc2",
        closing_norm="final_layer_norm",
        pre_norm_field="do_layer_norm_before",
        size_field="ffn_dim",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
}


@dataclass(frozen=True)
class FFN:
    """One layer's FFN, as live references into a model."""

    index: int
    """Layer number, from 0."""
    layer: nn.Module
    """The whole transformer layer; its output is `H_l`, shape (B, T, H)."""
    up: nn.Module
    down: nn.Module
    gate: nn.Module | None
    closing_norm: nn.Module | None
    dropout: nn.Module | None

    @property
    def num_neurons(self) -> int:
        """N."""
        return self.up_weight.shape[0]

    @property
    def up_weight(self) -> Tensor:
        """(N, H) view."""
        return _as_linear(self.up)

    @property
    def gate_weight(self) -> Tensor | None:
        """(N, H) view, or None for an ungated FFN."""
        return None if self.gate is None else _as_linear(self.gate)

    @property
    def down_weight(self) -> Tensor:
        """(H, N) view."""
        return _as_linear(self.down)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return all that alignment may train, e.g. `up.weight`: projections, biases and the closing LayerNorm."""
        parts = {"up": self.up, "gate": self.gate, "down": self.down, "closing_norm": self.closing_norm}
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            if module is not None
            for name, parameter in module.named_parameters()
            if "lora_" not in name
        }

    def parameters(self) -> list[nn.Parameter]:
        """Return the values of :meth:`named_parameters`."""
        return list(self.named_parameters().values())

    def neuron_axes(self) -> list[tuple[nn.Parameter, int]]:
        """Return each parameter that has a neuron axis, with that axis (`down.bias` and the LayerNorm have none)."""
        axes = []
        for module in (self.up, self.gate):
            if module is not None:
                axes.append((module.weight, 1 if isinstance(module, Conv1D) else 0))
                if module.bias is not None:
                    axes.append((module.bias, 0))
        axes.append((self.down.weight, 0 if isinstance(self.down, Conv1D) else 1))
        return axes  # type: ignore[return-value]  # nn.Module attributes are typed as Tensor | Module

    @torch.no_grad()
    def keep_neurons(self, neurons: Tensor) -> None:
        """Cut the FFN down to `neurons`, a (r,) tensor of indices, in that order."""
        for parameter, axis in self.neuron_axes():
            # assigned through .data: every reference to the parameter, this table's included, sees the smaller tensor
            parameter.data = parameter.data.index_select(axis, neurons.to(parameter.device)).contiguous()
        for module in (self.up, self.gate):
            if isinstance(module, Conv1D):
                module.nf = len(neurons)
            elif module is not None:
                module.out_features = len(neurons)  # type: ignore[assignment]
        if isinstance(self.down, Conv1D):
            self.down.nx = len(neurons)
        else:
            self.down.in_features = len(neurons)  # type: ignore[assignment]


def find_backbone(model: nn.Module) -> PreTrainedModel:
    """Return the transformer without its task head, also from inside a PEFT or Lightning wrapper.

    Raises:
        ValueError: the module contains no transformers model.

    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return cast(PreTrainedModel, module.base_model)
    raise ValueError(f"no transformers model inside {type(model).__name__}")


def known_family(model_type: str, origin: str) -> FFNLocation:
    """Return the table row of a family.

    Args:
        model_type: as transformers' configs name it.
        origin: what has it, for the error.

    Raises:
        ConfigError: the family has no row; the message names the known ones and this file.

    """
    if model_type not in FFN_LOCATIONS:
        raise ConfigError(
            f"fm.path: found {origin} of model type {model_type!r}, allowed: {', '.join(sorted(FFN_LOCATIONS))} "
            "(a new one is a row in FFN_LOCATIONS of fedpft/models/ffn.py and one in LORA_TARGETS of lora.py beside it)"
        )
    return FFN_LOCATIONS[model_type]


def ffn_location(model: nn.Module) -> FFNLocation:
    """Return the table row of a model's family.

    Raises:
        ConfigError: as :func:`known_family`.

    """
    backbone = find_backbone(model)
    return known_family(backbone.config.model_type, type(backbone).__name__)


def find_ffns(model: nn.Module) -> list[FFN]:
    """Return the FFNs of a model, one a layer, in layer order.

    Raises:
        ConfigError: unknown model family.

    """
    location, backbone = ffn_location(model), find_backbone(model)
    pre_norm = location.pre_norm_field is not None and getattr(backbone.config, location.pre_norm_field)

    def part(layer: nn.Module, path: str | None) -> nn.Module | None:
        return None if path is None else attrgetter(path)(layer)

    return [
        FFN(
            index=index,
            layer=layer,
            up=attrgetter(location.up)(layer),
            down=attrgetter(location.down)(layer),
            gate=part(layer, location.gate),
            closing_norm=None if pre_norm else part(layer, location.closing_norm),
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
