"""Plug-in: write a tuned adapter into the FM."""

import numpy as np

from fedpft.models.lora import AdaptedModel, adapter_layout, set_adapter


def plug_in(fm: AdaptedModel, adapter: np.ndarray) -> AdaptedModel:
    """Set the FM's own LoRA and head tensors to the adapter's values and return the FM.

    Setting twice is setting once: the FM's weights outside the adapter never change.

    Args:
        fm: the FM with an attached adapter.
        adapter: (P,) float32 in the FM's adapter layout.

    """
    set_adapter(fm, adapter)
    return fm


def check_same_layout(fm: AdaptedModel, proxy: AdaptedModel) -> None:
    """Assert that an adapter tuned on the proxy fits the FM, name by name and shape by shape."""
    fm_layout, proxy_layout = adapter_layout(fm), adapter_layout(proxy)
    assert fm_layout == proxy_layout, f"adapter layouts differ: {set(fm_layout) ^ set(proxy_layout)}"
