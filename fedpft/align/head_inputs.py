"""Where a task head's inputs lie, measured on public data."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.config import ServerConfig
from fedpft.models.flags import restored_flags
from fedpft.models.standardized_head import first_head_layer, standardize
from fedpft.trainer import server_fabric

NUM_EXAMPLES, BATCH_SIZE = 800, 16
"""At most, and in each forward pass."""


@torch.no_grad()
def standardize_head(fm: PreTrainedModel, public: PublicData, server: ServerConfig, seed: int) -> None:
    """Let the FM's head read features standardized by their mean and deviation over public examples, in place.

    Its outputs do not change. What is made of the FM later, a sub-FM or one with an adapter, has the same head.

    Args:
        fm: plain, with a task head.
        public: unlabelled examples.
        server: device.
        seed: of the draw of examples.

    Raises:
        ConfigError: see :func:`first_head_layer`.

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
    standardize(layer, inputs.mean(dim=0), inputs.std(dim=0, correction=0))
