"""Which layers of an FM change their input least: Block Influence of ShortGPT (Men et al. 2024, arXiv 2403.03853).

    influence of a layer = 1 - mean over tokens of the cosine of its input and its output

FedProxy (Fan et al., ACL 2026) removes those of least influence.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from fedpft.construct.layer_drop import KEPT_BY_DEFAULT
from fedpft.models.ffn import find_backbone, find_ffns
from fedpft.models.flags import restored_flags


@torch.no_grad()
def block_influence(fm: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """Return each layer's influence on unlabelled batches, on the model's device; the model is not changed."""
    layers = [ffn.layer for ffn in find_ffns(fm)]
    sums, count = torch.zeros(len(layers), dtype=torch.float64), 0
    alike: dict[int, Tensor] = {}

    def hook_for(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            alike[index] = cosine_similarity(before.double(), after.double(), dim=-1)

        return hook

    handles = [layer.register_forward_hook(hook_for(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        with restored_flags(fm):
            fm.eval()
            for batch in batches:
                find_backbone(fm)(**batch)
                mask = batch.get("attention_mask")
                for index, cosines in alike.items():
                    real = cosines
                    if mask is not None and mask.shape == cosines.shape:
                        real = cosines[mask.bool().to(cosines.device)]
                    sums[index] += real.sum().cpu()
                count += real.numel()
    finally:
        for handle in handles:
            handle.remove()
    return (1 - sums / count).tolist()


def most_influential(influences: list[float], num: int) -> tuple[int, ...]:
    """Return the layers of the largest influence, ascending; of equal ones the first."""
    return tuple(sorted(sorted(range(len(influences)), key=lambda layer: -influences[layer])[:num]))


def num_kept(num_layers: int, wanted: int | None) -> int:
    """Return how many layers are kept; None: 7 of 12.

    Raises:
        ValueError: more than there are.

    """
    if wanted is not None and wanted > num_layers:
        raise ValueError(f"kept_layers: found {wanted}, allowed: 1 to {num_layers}, the FM's layers")
    return max(1, round(num_layers * KEPT_BY_DEFAULT)) if wanted is None else wanted
