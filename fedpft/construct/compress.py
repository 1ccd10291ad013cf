"""FM -> sub-FM: keep the most salient neurons of every FFN; a sub-FM as the tensors that tell it from its FM."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedpft.construct.saliency import Scorer, find_scorer, most_salient, weight_norm
from fedpft.models.ffn import find_ffns
from fedpft.models.loading import record_ffn_sizes

_RETAINED = "retained"


@dataclass(frozen=True)
class NeuronMap:
    """Which FM neurons the sub-FM kept: layer -> (r,) ascending FM indices, compressed layers only."""

    retained: Mapping[int, Tensor]

    @property
    def compressed_layers(self) -> tuple[int, ...]:
        """Layers whose FFN was cut, ascending."""
        return tuple(sorted(self.retained))


def compress(
    fm: PreTrainedModel,
    *,
    retained_ratio: float,
    uncompressed_layers: Sequence[int] = (),
    scorer: Scorer | str = weight_norm,
) -> tuple[PreTrainedModel, NeuronMap]:
    """Return a smaller copy of the FM and the map of its neurons; the FM is not changed.

    Args:
        fm: a transformers model of a family in `FFN_LOCATIONS`.
        retained_ratio: fraction of neurons kept in every compressed FFN, in (0, 1]; at least one neuron stays.
        uncompressed_layers: layers left whole; negative numbers count from the last.
        scorer: a function of `fedpft.construct.saliency`, or the name of one that needs no data.

    Raises:
        ValueError: a ratio or layer out of range, an unknown scorer name or an unknown family.

    """
    if not 0 < retained_ratio <= 1:
        raise ValueError(f"retained_ratio: found {retained_ratio}, allowed: a fraction in (0, 1]")
    fm_ffns = find_ffns(fm)
    whole = resolve_layers(uncompressed_layers, len(fm_ffns))
    scores = find_scorer(scorer)(fm, fm_ffns)
    retained: dict[int, Tensor] = {}
    for ffn, score in zip(fm_ffns, scores, strict=True):
        num_retained = max(1, round(retained_ratio * ffn.num_neurons))
        if ffn.index not in whole and num_retained < ffn.num_neurons:
            retained[ffn.index] = most_salient(score, num_retained).cpu()
    return _cut(fm, retained), NeuronMap(retained)


def sub_fm_tensors(sub_fm: nn.Module, neuron_map: NeuronMap) -> dict[str, Tensor]:
    """Return copies, on the CPU, of all in which a sub-FM differs from its FM, for :func:`restore_sub_fm`.

    Returns:
        Per compressed layer L: `L.retained`, (r,) int64, and the FFN's parameters, e.g. `L.up.weight`.

    """
    ffns = find_ffns(sub_fm)
    tensors = {f"{layer}.{_RETAINED}": neurons.clone() for layer, neurons in neuron_map.retained.items()}
    for layer in neuron_map.compressed_layers:
        for name, parameter in ffns[layer].named_parameters().items():
            tensors[f"{layer}.{name}"] = parameter.detach().cpu().clone()
    return tensors


@torch.no_grad()
def restore_sub_fm(fm: PreTrainedModel, tensors: Mapping[str, Tensor]) -> tuple[PreTrainedModel, NeuronMap]:
    """Rebuild a sub-FM, bit for bit, from its FM and :func:`sub_fm_tensors`; the FM is not changed.

    Raises:
        ValueError: the tensors are not those of a sub-FM of this FM.

    """
    suffix = f".{_RETAINED}"
    kept = {int(name.removesuffix(suffix)): value for name, value in tensors.items() if name.endswith(suffix)}
    retained = {layer: value.clone() for layer, value in kept.items()}  # a file's memory may go with the file
    neuron_map = NeuronMap(retained)
    sub_fm = _cut(fm, retained)
    ffns = find_ffns(sub_fm)
    targets = {
        f"{layer}.{name}": parameter
        for layer in neuron_map.compressed_layers
        for name, parameter in ffns[layer].named_parameters().items()
    }
    values = {name: value for name, value in tensors.items() if not name.endswith(suffix)}
    if targets.keys() != values.keys():
        raise ValueError(f"sub-FM tensors: names differ from the FM's FFNs: {sorted(targets.keys() ^ values.keys())}")
    for name, parameter in targets.items():
        if parameter.shape != values[name].shape:
            raise ValueError(
                f"sub-FM tensor {name!r}: found {tuple(values[name].shape)}, the FM has {tuple(parameter.shape)}"
            )
        parameter.copy_(values[name])
    return sub_fm, neuron_map


def _cut(fm: PreTrainedModel, retained: Mapping[int, Tensor]) -> PreTrainedModel:
    """Return a copy of the FM with these neurons of these layers; the others are never copied."""
    fm_ffns = find_ffns(fm)
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(values, parameter.requires_grad)
        for layer, neurons in retained.items()
        for parameter, values in fm_ffns[layer].cut(neurons)
    }
    sub_fm = copy.deepcopy(fm, memo)  # which takes the memo's parameters instead of copying the FM's
    ffns = find_ffns(sub_fm)
    for layer in retained:
        ffns[layer].note_sizes()
    record_ffn_sizes(sub_fm)
    return sub_fm


def resolve_layers(layers: Sequence[int], num_layers: int) -> frozenset[int]:
    """Return layer numbers in [0, num_layers), counting negative ones from the end.

    Raises:
        ValueError: a layer that the model does not have.

    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise ValueError(f"uncompressed_layers: found {layer}, allowed: {-num_layers} to {num_layers - 1}")
    return frozenset(layer % num_layers for layer in layers)
