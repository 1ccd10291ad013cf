"""Run fixed batches through a model's layers one layer at a time, and read what one FFN sees and gives.

What is kept between layers is one hidden state per batch, so that work on layer l costs one pass through layer l, not
through all layers before it. It is kept on disk: memory does not grow with the batches. Shapes: `B` batch, `T` tokens,
`H` hidden, `N` neurons.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from fedpft.config import ConfigError
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import FFN, ffn_location, find_backbone, find_ffns
from fedpft.models.on_disk import all_on_disk, at


@dataclass(frozen=True)
class LayerCalls:
    """One batch on its way into the layers: how the model calls each of them, and what goes into the first.

    A model and its sub-FM call their layers alike: same masks, same positions, same embeddings. What is as large as a
    hidden state lies on disk (`fedpft.models.on_disk`), whatever the model's device.
    """

    hidden: Tensor
    """(B, T, H): input of layer 0, on disk."""
    real: Tensor
    """(B, T) bool: positions that count, i.e. no padding."""
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    """Per layer: the other positional and the keyword arguments."""

    def run(self, layer: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """Return the output `H_index`, (B, T, H), of a layer in place `index` on this hidden state, on its device."""
        device = next(layer.parameters()).device
        hidden, (args, kwargs) = at(device, (hidden, self.arguments[index]))
        output = layer(hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


def runs_layer_by_layer(model: nn.Module) -> bool:
    """Whether each layer's output is the next one's input."""
    path, backbone = ffn_location(model).between_layers, find_backbone(model)
    return path is None or attrgetter(path)(backbone) is None


def check_layer_by_layer(model: nn.Module, key: str) -> None:
    """Check that each layer's output is the next one's input, without which layers cannot be run one by one.

    Args:
        model: of a known family.
        key: config key that asks for it.

    Raises:
        ConfigError: the model computes something between two layers.

    """
    if not runs_layer_by_layer(model):
        path, backbone = ffn_location(model).between_layers, find_backbone(model)
        found = f"closed_form for a {type(backbone).__name__} with {path} between its layers"
        raise ConfigError(f"{key}: found {found}, allowed: distill, none")


@torch.no_grad()
def record_calls(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> list[LayerCalls]:
    """Return how the model calls its layers on each batch.

    The first batch runs through the whole model. If all layers were called alike, the others stop at the first layer;
    else (e.g. sliding and full attention in turns) they run through too.
    """
    backbone, layers = find_backbone(model), [ffn.layer for ffn in find_ffns(model)]
    switches = {"use_cache": False} if getattr(backbone.config, "use_cache", False) else {}
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    alike, recorded = False, []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        if alike:
            raise _SeenEnough

    handles = [layer.register_forward_pre_hook(record, with_kwargs=True, prepend=True) for layer in layers]
    try:
        for batch in batches:
            seen.clear()
            with suppress(_SeenEnough), layer_outputs(layers[:-1]) as outputs:
                backbone(**batch, **switches)
            calls = [_split_hidden(args, kwargs) for args, kwargs in seen]
            assert all(calls[index + 1][0] is output for index, output in outputs.items()), "work between layers"
            hidden, arguments = calls[0][0], [call[1:] for call in calls]
            alike = alike or all(_same(arguments[0], other) for other in arguments[1:])
            hidden, arguments = all_on_disk((hidden, arguments[:1] if alike else arguments))
            mask = batch.get("attention_mask")
            real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask.bool()
            recorded.append(LayerCalls(hidden, real, tuple(arguments * len(layers) if alike else arguments)))
    finally:
        for handle in handles:
            handle.remove()
    return recorded


class FFNTrace:
    """The latest forward pass through one FFN."""

    activations: Tensor
    """`h`, (B, T, N): input of the down projection."""
    down: Tensor
    """`y`, (B, T, H): output of the down projection."""
    output: Tensor
    """What it adds to the residual stream, (B, T, H): `y`, or `FFN.contribution` of it."""
    total: Tensor
    """Residual stream plus `output`, (B, T, H): the closing LayerNorm's input in post-LN families, else the output."""


@contextmanager
def trace_ffn(ffn: FFN) -> Iterator[FFNTrace]:
    """Read the forward passes inside the block."""
    trace = FFNTrace()

    def down_hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        trace.activations, trace.down = args[0], output

    def total_hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        trace.total = args[0] if ffn.closing_norm is not None else output[0] if isinstance(output, tuple) else output
        # OPT flattens batch and tokens inside its layers
        trace.activations = trace.activations.view(*trace.total.shape[:-1], -1)
        trace.down = trace.down.view_as(trace.total)
        trace.output = ffn.contribution(trace.down)

    end: nn.Module = ffn.layer if ffn.closing_norm is None else ffn.closing_norm
    handles = [ffn.down.register_forward_hook(down_hook), end.register_forward_hook(total_hook)]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


def _same(first: Any, second: Any) -> bool:
    """Whether two layers got the same objects (or equal plain values)."""
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(_same, first, second))
    return first is second or bool(first == second)


class _SeenEnough(Exception):  # noqa: N818 - a way out, not an error
    pass
