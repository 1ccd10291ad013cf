"""Where a task head's inputs lie, measured on public data."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.config import ConfigError, ServerConfig
from fedpft.models.flags import restored_flags
from fedpft.models.standardized_head import first_head_layer
from fedpft.trainer import server_fabric

NUM_EXAMPLES, BATCH_SIZE = 800, 16
"""At most, and in each forward pass."""


@dataclass(frozen=True, kw_only=True)
class HeadInputs:
    """Of each feature that a task head reads."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@torch.no_grad()
def measure_head_inputs(fm: PreTrainedModel, public: PublicData, server: ServerConfig, seed: int) -> HeadInputs:
    """Return what the FM's head reads on public examples; the FM does not change.

    Args:
        fm: plain, with a task head.
        public: unlabelled examples.
        server: device.
        seed: of the draw of examples.

    Raises:
        ConfigError: see :func:`first_head_layer`; or the examples are all alike to the head.

    """
    layer, seen = first_head_layer(fm), list[Tensor]()
    fabric = server_fabric(server)
    fabric.to_device(fm)

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].double())

    handle = layer.register_forward_pre_hook(look)
    try:
        with restored_flags(fm):
            fm.eval()
            for batch in public.batches(NUM_EXAMPLES, BATCH_SIZE, seed):
                fm(**fabric.to_device(dict(batch)))
    finally:
        handle.remove()
    inputs = torch.cat(seen).flatten(0, -2)
    std = inputs.std(dim=0, correction=0)
    if not std.isfinite().all() or not std.any():
        found = f"standardized, but the {len(inputs)} public examples that were read are all alike to the FM"
        raise ConfigError(f"federated.head_inputs: found {found}, allowed: raw, or other public data")
    return HeadInputs(mean=tuple(inputs.mean(dim=0).tolist()), std=tuple(std.tolist()))
