"""FM -> FedOT's proxy: the first and last layers for the adapter, some of those in between as a frozen emulator.

Offsite tuning, Xiao et al. 2023 (arXiv 2302.04870), with a uniform layer drop: of `M` middle layers, `m` are kept,

    middle layer round(i * (M - 1) / (m - 1))   for i = 0, ..., m - 1,

as in the authors' code (`uniform_choose_layers`): the first and the last middle layer stay. For `m = 1`, where theirs
divides by zero, it is the one in the centre, `round((M - 1) / 2)`. Halves are rounded to the even number.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedpft.config import ConfigError
from fedpft.models.depth import keep_layers
from fedpft.models.ffn import ffn_location, find_backbone, find_ffns

KEPT_BY_DEFAULT = Fraction(7, 12)
"""Of the FM's layers: the paper's budget, 47 of BERT-base's 81 Mi."""


@dataclass(frozen=True)
class LayerMap:
    """Which FM layers the proxy has, and which of them carry the adapter. Layers are counted from 0."""

    kept: tuple[int, ...]
    """The FM layer of each of the proxy's layers, ascending."""
    adapter_layers: int | None
    """Layers at either end that carry the adapter; None: all do."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(layer of the FM, layer of the proxy) that correspond."""
        return tuple((fm_layer, layer) for layer, fm_layer in enumerate(self.kept))

    @property
    def emulator(self) -> range:
        """The proxy's frozen layers; perhaps none."""
        if self.adapter_layers is None:
            return range(0)
        return range(self.adapter_layers, len(self.kept) - self.adapter_layers)

    @property
    def end_of_middle(self) -> int:
        """The FM's layer whose output the emulator, if there is one, stands for."""
        return self.kept[self.emulator.stop] - 1

    @property
    def tuned(self) -> tuple[int, ...]:
        """The proxy's layers that carry the adapter."""
        return tuple(layer for layer in range(len(self.kept)) if layer not in self.emulator)

    @property
    def tuned_in_fm(self) -> tuple[int, ...]:
        """The same layers in the FM."""
        return tuple(self.kept[layer] for layer in self.tuned)


def choose_layers(num_layers: int, *, adapter_layers: int, kept_layers: int | None = None) -> LayerMap:
    """Return which of an FM's layers its proxy has; see the module's formula.

    Args:
        num_layers: of the FM.
        adapter_layers: layers at either end that carry the adapter.
        kept_layers: of the proxy, the adapter's included; None: `KEPT_BY_DEFAULT` of the FM's, if these are enough.

    Raises:
        ValueError: more layers than the FM has, or fewer than the adapter needs.

    """
    ends = 2 * adapter_layers
    if not 2 <= ends <= num_layers:
        raise ValueError(
            f"adapter_layers: found {adapter_layers}, allowed: 1 to {num_layers // 2}, half of the FM's layers"
        )
    kept = max(ends, round(num_layers * KEPT_BY_DEFAULT)) if kept_layers is None else kept_layers
    if not ends <= kept <= num_layers:
        raise ValueError(
            f"kept_layers: found {kept}, allowed: {ends} to {num_layers}, from 2 * adapter_layers to the FM's layers"
        )
    middle = [adapter_layers + index for index in _uniform(num_layers - ends, kept - ends)]
    last = range(num_layers - adapter_layers, num_layers)
    return LayerMap(kept=(*range(adapter_layers), *middle, *last), adapter_layers=adapter_layers)


def drop_layers(fm: PreTrainedModel, layer_map: LayerMap) -> PreTrainedModel:
    """Return a copy of the FM with these layers alone, an ordinary model of its family; the FM is not changed.

    Raises:
        ConfigError: an FM in which what a layer computes depends on its number.

    """
    if getattr(fm.config, "scale_attn_by_inverse_layer_idx", False):
        allowed = "False with method.name = fedot, or a layer's attention changes with its number"
        raise ConfigError(f"fm.config.scale_attn_by_inverse_layer_idx: found True, allowed: {allowed}")
    layers = attrgetter(ffn_location(fm).layers)(find_backbone(fm))
    memo: dict[int, object] = {}  # one for both copies, so that what the layers share with the model stays shared
    kept = nn.ModuleList(copy.deepcopy(layers[index], memo) for index in layer_map.kept)
    kept.training = layers.training
    memo[id(layers)] = kept  # the other layers are never copied
    proxy = copy.deepcopy(fm, memo)
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]  # its place in the cache of keys and values
    keep_layers(proxy.config, layer_map.kept)
    return proxy


def emulator_tensors(proxy: nn.Module, layer_map: LayerMap) -> dict[str, Tensor]:
    """Return copies, on the CPU, of all in which a proxy differs from the FM's layers, for :func:`restore_emulator`."""
    return {name: parameter.detach().cpu().clone() for name, parameter in _parameters(proxy, layer_map).items()}


@torch.no_grad()
def restore_emulator(fm: PreTrainedModel, layer_map: LayerMap, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """Rebuild a proxy, bit for bit, from its FM and :func:`emulator_tensors`; the FM is not changed.

    Raises:
        ValueError: the tensors are not those of an emulator of these layers of this FM.

    """
    proxy = drop_layers(fm, layer_map)
    parameters = _parameters(proxy, layer_map)
    found, expected = ({name: tuple(t.shape) for name, t in group.items()} for group in (tensors, parameters))
    if found != expected:
        differ = sorted(name for name, _ in found.items() ^ expected.items())
        raise ValueError(f"emulator tensors: names or shapes differ from the FM's layers: {differ}")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
    return proxy


def _uniform(num_layers: int, num_kept: int) -> list[int]:
    if num_kept == 1:
        return [round((num_layers - 1) / 2)]
    return [round(index * ((num_layers - 1) / (num_kept - 1))) for index in range(num_kept)]


def _parameters(proxy: nn.Module, layer_map: LayerMap) -> dict[str, nn.Parameter]:
    """Return the emulator's parameters, e.g. `2.mlp.fc1.weight` of the proxy's layer 2."""
    ffns = find_ffns(proxy)
    return {
        f"{layer}.{name}": parameter
        for layer in layer_map.emulator
        for name, parameter in ffns[layer].layer.named_parameters()
    }
