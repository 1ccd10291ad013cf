"""PURE: where the LoRA tensors of an FM and of its sub-FM correspond, although the sub-FM's FFNs have fewer neurons.

With LoRA on an FFN, rows of `up`'s (and the gate's) B and columns of `down`'s A belong to neurons. A neuron that the
sub-FM lacks has no LoRA there, and gets zeros in the FM: it stays as it was (recovery of pruned adapters as in LoRAM,
arXiv 2502.13533).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NeuronsKept = Mapping[int, Tensor]
"""Layer of the FM -> (r,) indices of those of its neurons that the proxy has, in the proxy's order."""


def kept_entries(fm_shape: Sequence[int], proxy_shape: Sequence[int], neurons: Tensor) -> tuple[int, Tensor]:
    """Return the axis of neurons of one LoRA tensor, and which of the FM's entries on it the proxy's are, in order.

    A projection that is gate and `up` in one has all neurons twice, one half after the other.

    Args:
        fm_shape, proxy_shape: of the same tensor in both models; they differ in one axis.
        neurons: (r,) the FM's neurons that the proxy's FFN has.

    Raises:
        ValueError: shapes that no such choice of neurons explains.

    """
    axes = [axis for axis, sizes in enumerate(zip(fm_shape, proxy_shape, strict=True)) if sizes[0] != sizes[1]]
    if len(axes) != 1 or proxy_shape[axes[0]] % len(neurons):
        raise ValueError(f"LoRA: found shapes {tuple(fm_shape)} and {tuple(proxy_shape)} for {len(neurons)} neurons")
    (axis,) = axes
    num_parts = proxy_shape[axis] // len(neurons)
    part = fm_shape[axis] // num_parts
    return axis, torch.cat([neurons + first for first in range(0, fm_shape[axis], part)])
