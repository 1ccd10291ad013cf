"""An FM that one GPU cannot hold: its layers, in their order, over several (`fm.device_map`).

first GPU    embeddings, the first layers, and what follows the last one: norm, pooler, head
others       the other layers

So it starts and ends on the first GPU, like a model that lies there as a whole. A hook before each part brings what
goes into it to where its weights are. It names no device: in a copy, say a sub-FM, every layer stays where the FM's is,
and what is cut, adapted or run layer by layer stays right. (Accelerate's dispatch ties a module to a device by another
`forward`, and leaves no weights to read where it offloads: a closed form reads and writes them.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedpft.config import ConfigError
from fedpft.models.ffn import find_ffns
from fedpft.models.on_disk import at


def spread_over_gpus(fm: nn.Module, num_gpus: int) -> str:
    """Move an FM to the first GPUs of this process and return where its layers then lie, in a line.

    Raises:
        ConfigError: as :func:`gpu_of_layers`.

    """
    places = gpu_of_layers(fm, num_gpus)
    spread(fm, [torch.device("cuda", place) for place in places], torch.device("cuda", 0))
    layers_of = [[layer for layer, place in enumerate(places) if place == gpu] for gpu in range(num_gpus)]
    parts = [f"layers {layers[0]} to {layers[-1]} on GPU {gpu}" for gpu, layers in enumerate(layers_of) if layers]
    return f"{', '.join(parts)}, all else on GPU 0"


def gpu_of_layers(fm: nn.Module, num_gpus: int) -> list[int]:
    """Return the GPU of each layer of an FM, which may be on the meta device, by what is free on each GPU.

    Raises:
        ConfigError: together they do not hold its weights.

    """
    torch.cuda.empty_cache()
    room = [torch.cuda.mem_get_info(index)[0] for index in range(num_gpus)]
    layers = [_bytes(ffn.layer) for ffn in find_ffns(fm)]
    places = share_out(_bytes(fm) - sum(layers), layers, room)
    if places is None:
        free = " + ".join(f"{each / 1e9:.3g}" for each in room)
        found = f"auto, for {_bytes(fm) / 1e9:.3g} GB of weights on GPUs with {free} GB free"
        raise ConfigError(f"fm.device_map: found {found}, allowed: weights that its GPUs hold together")
    return places


def share_out(rest: int, layers: Sequence[int], room: Sequence[int]) -> list[int] | None:
    """Return the GPU of each layer, ascending, so that all are filled to about the same part; None: it cannot be.

    Args:
        rest: bytes of what lies on the first GPU besides layers.
        layers: bytes of each layer.
        room: bytes free on each GPU.

    """
    sizes, total = np.array(layers), rest + sum(layers)
    middles = (rest + np.cumsum(sizes) - sizes / 2) / total
    ends = np.cumsum(room) / sum(room)
    places = np.searchsorted(ends[:-1], middles)
    held = np.bincount(places, weights=sizes, minlength=len(room))
    held[0] += rest
    return places.tolist() if (held <= room).all() else None


def spread(model: nn.Module, places: Sequence[torch.device], first: torch.device) -> None:
    """Move each layer to its place and all else to the first device, and let inputs follow the weights.

    Args:
        model: of a known family; it is changed, its parameters stay the same objects.
        places: of its layers.
        first: where it starts and ends.

    """
    layers = [ffn.layer for ffn in find_ffns(model)]
    where = {module: place for layer, place in zip(layers, places, strict=True) for module in layer.modules()}
    for module in model.modules():
        place = where.get(module, first)
        module._apply(lambda tensor, place=place: tensor.to(place), recurse=False)
    follow_weights(model)


def follow_weights(model: nn.Module) -> None:
    """Bring what goes into each layer, or into what stands outside of the layers, to where its weights are.

    Where that is done already, nothing happens: it is asked for again when modules were wrapped.
    """
    _follow(model, {ffn.layer for ffn in find_ffns(model)})


def stay(model: nn.Module) -> None:
    """Undo :func:`follow_weights`: the model is meant for one device."""
    for module in model.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _to_weights]:
            del module._forward_pre_hooks[key], module._forward_pre_hooks_with_kwargs[key]


def _follow(module: nn.Module, layers: set[nn.Module]) -> None:
    for child in module.children():
        if child not in layers and any(inner in layers for inner in child.modules()):
            _follow(child, layers)
        elif _to_weights not in child._forward_pre_hooks.values():
            child.register_forward_pre_hook(_to_weights, with_kwargs=True)


def _to_weights(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    parameter = next(module.parameters(), None)
    return None if parameter is None else at(parameter.device, (args, kwargs))


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
