"""Tensors whose values lie in a file, for what is read in turn and is too much for the memory all at once.

The file is mapped into memory: what is in use is there, the rest takes none that others need. It lies where temporary
files do (`TMPDIR`), has no name any more once it is open, and is gone with its tensor, however the process ends.
"""

import os
from tempfile import NamedTemporaryFile
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Values = TypeVar("Values")


def on_disk(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU whose values lie in a file; what was expanded stays so and takes the place of one.

    Raises:
        OSError: there is no room for it.

    """
    if tensor.numel() == 0:
        return tensor.cpu()
    if tensor.is_meta:  # has no values
        return tensor.new_empty(1).expand(tensor.shape)
    values = tensor[tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())]
    with NamedTemporaryFile(prefix="fedpft-") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here; while the map is written it would be the end
            os.posix_fallocate(file.fileno(), 0, values.nbytes)
        mapped = torch.from_file(file.name, shared=True, size=values.numel(), dtype=values.dtype)
    return mapped.view(values.shape).copy_(values).expand(tensor.shape)


def all_on_disk(values: Values) -> Values:
    """Return nested values with every tensor on disk; what is one tensor in several places stays one."""
    known: dict[int, Tensor] = {}

    def copied(leaf: object) -> object:
        return known.setdefault(id(leaf), on_disk(leaf)) if isinstance(leaf, Tensor) else leaf

    return tree_map(copied, values)


def at(device: torch.device, values: Values) -> Values:
    """Return nested values with every tensor on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, values)
