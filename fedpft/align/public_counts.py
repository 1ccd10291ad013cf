"""Activation counts that cost no client anything: the server's, on public data."""

from collections.abc import Sequence

import torch

from fedpft.align.public import PublicData
from fedpft.config import ServerConfig
from fedpft.models.activations import ActivationCounts, InactivityCounter
from fedpft.models.ffn import find_ffns
from fedpft.models.flags import restored_flags
from fedpft.models.lora import AdaptedModel
from fedpft.trainer import server_fabric

NUM_EXAMPLES, BATCH_SIZE = 256, 16
"""Public examples that are counted on: enough for the order of the neurons to settle."""


@torch.no_grad()
def count_on_public(
    proxy: AdaptedModel, watched_layers: Sequence[int], public: PublicData, *, server: ServerConfig, seed: int
) -> ActivationCounts:
    """Count how often each neuron of the watched FFNs does not fire; the proxy's mode and weights do not change.

    Args:
        proxy: with the adapter of the round.
        watched_layers: as in `Proxy`.
        public: unlabelled examples.
        server: device and precision.
        seed: of the draw of examples.

    """
    fabric = server_fabric(server, mixed=True)
    fabric.to_device(proxy)
    ffns = find_ffns(proxy)
    with restored_flags(proxy), InactivityCounter([ffns[layer] for layer in watched_layers]) as counter:
        proxy.eval()
        for batch in public.batches(NUM_EXAMPLES, BATCH_SIZE, seed):
            moved = fabric.to_device(dict(batch))
            counter.set_mask(moved.get("attention_mask"))
            with fabric.autocast():
                proxy(**moved)
    return counter.counts()
