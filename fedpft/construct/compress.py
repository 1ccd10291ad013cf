"""FM -> sub-FM: keep the most salient neurons of every FFN."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from fedpft.construct.saliency import Scorer, find_scorer, most_salient, weight_norm
from fedpft.models.ffn import find_ffns
from fedpft.models.loading import record_ffn_sizes


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
    sub_fm = copy.deepcopy(fm)
    retained: dict[int, Tensor] = {}
    for ffn, score in zip(find_ffns(sub_fm), scores, strict=True):
        num_retained = max(1, round(retained_ratio * ffn.num_neurons))
        if ffn.index in whole or num_retained == ffn.num_neurons:
            continue
        kept = most_salient(score, num_retained)
        ffn.keep_neurons(kept)
        retained[ffn.index] = kept.cpu()
    record_ffn_sizes(sub_fm)
    return sub_fm, NeuronMap(retained)


def resolve_layers(layers: Sequence[int], num_layers: int) -> frozenset[int]:
    """Return layer numbers in [0, num_layers), counting negative ones from the end.

    Raises:
        ValueError: a layer that the model does not have.

    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise ValueError(f"uncompressed_layers: found {layer}, allowed: {-num_layers} to {num_layers - 1}")
    return frozenset(layer % num_layers for layer in layers)
