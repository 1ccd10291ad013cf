"""Plug-in: write a tuned adapter into the FM."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from fedpft.models.ffn import ffn_location
from fedpft.models.lora import AdaptedModel, adapter_layout, set_adapter


def plug_in(fm: AdaptedModel, adapter: np.ndarray, order: np.ndarray | None = None) -> AdaptedModel:
    """Set the FM's own LoRA and head tensors to the adapter's values and return the FM.

    Setting twice is setting once: the FM's weights outside the adapter never change.

    Args:
        fm: the FM with an attached adapter.
        adapter: (P,) float32 in the proxy's adapter layout.
        order: (P,) int64 of :func:`adapter_order`; None: the FM's layout is the same.

    Raises:
        ValueError: an adapter of another length.

    """
    if order is not None and adapter.shape != order.shape:
        raise ValueError(f"adapter: found shape {adapter.shape}, allowed: {order.shape} as laid out by the proxy")
    set_adapter(fm, adapter if order is None else adapter[order])
    return fm


def check_same_layout(fm: AdaptedModel, proxy: AdaptedModel) -> None:
    """Assert that an adapter tuned on the proxy fits the FM, name by name and shape by shape."""
    fm_layout, proxy_layout = adapter_layout(fm), adapter_layout(proxy)
    assert fm_layout == proxy_layout, f"adapter layouts differ: {set(fm_layout) ^ set(proxy_layout)}"


def adapter_order(fm: AdaptedModel, proxy: AdaptedModel, layers: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return (P,) int64: where each entry of the FM's flat adapter stands in the proxy's, so `fm's = proxy's[order]`.

    A layout is sorted by name, layer 10 before layer 2, so that a proxy of fewer layers has an order of its own.

    Args:
        fm, proxy: with LoRA on layers that correspond, and the same head.
        layers: pairs (layer of the FM, layer of the proxy) that correspond.

    """
    layer_of, path = dict(layers), re.escape(ffn_location(fm).layers)

    def name_in_proxy(name: str) -> str:
        return re.sub(rf"\.{path}\.\d+(?=\.)", lambda part: _renumbered(part[0], layer_of), name, count=1)

    spans, end = {}, 0
    for name, shape in adapter_layout(proxy):
        start, end = end, end + math.prod(shape)
        spans[name, shape] = np.arange(start, end)
    named = [(name_in_proxy(name), shape) for name, shape in adapter_layout(fm)]
    assert set(named) == spans.keys(), f"adapter layouts differ: {set(named) ^ spans.keys()}"
    return np.concatenate([spans[item] for item in named])


def _renumbered(part: str, layer_of: Mapping[int, int]) -> str:
    path, _, layer = part.rpartition(".")
    return f"{path}.{layer_of[int(layer)]}"
