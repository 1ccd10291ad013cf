"""Which of a model's weights clients may hold in few bits, and how these are packed for travel.

Quantised are the linear layers inside the transformer layers: attention and FFN. What clients tune stays as it is, and
so do embeddings, norms, biases, convolutions and everything outside the layers, such as a language model's head.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedpft.config import ConfigError
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import adapter_parameters
from fedpft.models.quantized_linear import QuantizedLinear, QuantKind, check_quantizer, linear_weight, quantize
from fedpft.models.weights import PackedModel, as_array, as_tensor, skeleton_of


def quantizable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the frozen linear layers inside a model's transformer layers, by name.

    Left out are weights that two modules share, and subclasses of linear layers, which compute something of their own.

    Raises:
        ConfigError: there are none.

    """
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    tuned = {id(parameter) for parameter in adapter_parameters(model).values()}
    inside = {id(module) for ffn in find_ffns(model) for module in ffn.layer.modules()}
    found = {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside
        and type(module) in (nn.Linear, Conv1D)
        and owners[id(module.weight)] == 1
        and id(module.weight) not in tuned
    }
    if not found:
        raise ConfigError("pool.quantize: found a proxy without frozen linear layers, allowed: none")
    return found


def quantize_layers(model: nn.Module, kind: QuantKind) -> None:
    """Replace the layers of :func:`quantizable`, in place; a model may be on the meta device."""
    for name, layer in quantizable(model).items():
        model.set_submodule(name, QuantizedLinear(layer, kind))


def check_layers(model: nn.Module, device: torch.device) -> None:
    """Refuse a model with quantised layers, if there are any, where this process cannot compute them.

    Raises:
        ConfigError: as :func:`check_quantizer`.

    """
    for kind in {module.kind for module in model.modules() if isinstance(module, QuantizedLinear)}:
        check_quantizer(kind, device.type)


def pack_quantized(model: nn.Module, kind: QuantKind) -> PackedModel:
    """Pack a model with these layers quantised, one after the other, on the CPU; the model is not changed.

    Raises:
        ConfigError: bitsandbytes is not installed, or nothing can be quantised.

    """
    skeleton = skeleton_of(model)
    quantize_layers(skeleton, kind)
    layers, weights = quantizable(model), dict[str, np.ndarray]()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        layer = _layer_of(name, layers)
        weights |= {name: as_array(parameter)} if layer is None else _quantized(name, linear_weight(layer), kind)
    return PackedModel(skeleton, weights)


def quantize_changes(model: nn.Module, changes: Mapping[str, np.ndarray], kind: QuantKind) -> dict[str, np.ndarray]:
    """Return changed weights of a model, by name, as a place takes them over that holds :func:`pack_quantized` of it.

    They are what packing the changed model gives: who joins later, or goes on from a checkpoint, has the same bits.
    """
    layers, weights = quantizable(model), dict[str, np.ndarray]()
    for name, array in changes.items():
        layer = _layer_of(name, layers)
        if layer is None:
            weights[name] = array
        else:
            weight = as_tensor(array, linear_weight(layer).dtype)
            weights |= _quantized(name, weight.T if isinstance(layer, Conv1D) else weight, kind)
    return weights


def _layer_of(parameter: str, layers: Mapping[str, nn.Module]) -> nn.Module | None:
    """Return the layer whose weight has this name; None: it is no weight of these layers."""
    name, _, own = parameter.rpartition(".")
    return layers.get(name) if own == "weight" else None


def _quantized(name: str, weight: Tensor, kind: QuantKind) -> dict[str, np.ndarray]:
    """Return codes and scales of the weight of this name, (O, I), by their names in the packed model."""
    codes, scales = quantize(weight.detach().cpu(), kind)
    layer = name.removesuffix(".weight")
    return {f"{layer}.codes": as_array(codes), f"{layer}.scales": as_array(scales)}
