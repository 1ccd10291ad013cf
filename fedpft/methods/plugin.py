"""Plug-in: write a tuned adapter into the FM."""

import math
import re
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from fedpft.models.ffn import ffn_location
from fedpft.models.lora import AdaptedModel, adapter_layout, set_adapter
from fedpft.models.shared_neurons import NeuronsKept, kept_entries

NOWHERE = -1
"""In an order, an entry of the FM's adapter that the proxy's lacks; it is 0. (At -1 a zero is put.)"""


def plug_in(fm: AdaptedModel, adapter: np.ndarray, order: np.ndarray | None = None) -> AdaptedModel:
    """Set the FM's own LoRA and head tensors to the adapter's values and return the FM.

    Setting twice is setting once: the FM's weights outside the adapter never change.

    Args:
        fm: the FM with an attached adapter.
        adapter: (P,) float32 in the proxy's adapter layout.
        order: of :func:`adapter_order`; None: the FM's layout is the same.

    Raises:
        ValueError: an adapter of another length.

    """
    if order is not None:
        expected = np.count_nonzero(order != NOWHERE)
        if adapter.shape != (expected,):
            raise ValueError(f"adapter: found shape {adapter.shape}, allowed: ({expected},) as laid out by the proxy")
        adapter = np.append(adapter, np.float32(0))[order]
    set_adapter(fm, adapter)
    return fm


def adapter_order(
    fm: AdaptedModel,
    proxy: AdaptedModel,
    layers: Sequence[tuple[int, int]] | None = None,
    neurons: NeuronsKept = MappingProxyType({}),
) -> np.ndarray:
    """Return where each entry of the FM's flat adapter stands in the proxy's: (P,) int64, P of the FM.

    `NOWHERE` stands for what the proxy lacks: LoRA of neurons that it does not have. A layout is sorted by name, layer
    10 before layer 2, so that a proxy of fewer layers has an order of its own.

    Args:
        fm, proxy: with LoRA on layers that correspond, and the same head.
        layers: pairs (layer of the FM, layer of the proxy) that correspond; None: all, of two models of the same depth.
        neurons: of the FM's layers, where LoRA is on FFNs that the proxy has a part of.

    """
    layer_of = None if layers is None else dict(layers)
    in_layer = re.compile(rf"(\.{re.escape(ffn_location(fm).layers)}\.)(\d+)(?=\.)")
    spans, end = {}, 0
    for name, shape in adapter_layout(proxy):
        start, end = end, end + math.prod(shape)
        spans[name] = np.arange(start, end).reshape(shape)
    order = []
    for name, shape in adapter_layout(fm):
        found = in_layer.search(name)
        layer = None if found is None else int(found[2])
        if found is not None and layer_of is not None:
            name = in_layer.sub(rf"\g<1>{layer_of[int(found[2])]}", name, count=1)
        span = spans.pop(name, None)
        assert span is not None, f"adapter layouts differ: the proxy has no {name}"
        if span.shape != shape:
            kept = neurons.get(layer) if layer is not None else None
            assert kept is not None, f"adapter layouts differ: {name} is {shape}, the proxy's {span.shape}"
            axis, entries = kept_entries(shape, span.shape, kept)
            whole = np.full(shape, NOWHERE)
            whole[(slice(None),) * axis + (entries.numpy(),)] = span
            span = whole
        order.append(span.ravel())
    assert not spans, f"adapter layouts differ: the FM has no {', '.join(spans)}"
    return np.concatenate(order)
