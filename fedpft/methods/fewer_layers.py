"""What the methods have in common whose proxy is the FM without some of its layers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.config import Config
from fedpft.construct.cache import BuiltSubFM
from fedpft.construct.compress import NeuronMap
from fedpft.construct.layer_drop import LayerMap
from fedpft.methods.base import FixedProxy, Proxy
from fedpft.methods.construction import construct_once
from fedpft.methods.plugin import adapter_order, plug_in
from fedpft.models.lora import AdaptedModel, attach_lora, set_adapter
from fedpft.seeding import derive_seed
from fedpft.trainer import Progress


class FewerLayers(FixedProxy, ABC):
    """A proxy of fewer layers; the adapter goes back into the FM at the layers that it came from.

    Args:
        fm: the server's FM; gets an adapter of its own, its weights never change.
        public: unlabelled data.
        config: the run's settings.
        progress: hears about the construction.

    """

    _layer_map: LayerMap
    """Which layers the proxy has; known once it is built."""

    def __init__(self, fm: PreTrainedModel, public: PublicData, config: Config, progress: Progress) -> None:
        self._plain_fm, self._public, self._config, self._progress = fm, public, config, progress

    def build_proxy(self, saved: Mapping[str, Tensor] | None = None) -> Proxy:
        """Build the proxy, or restore it; attach the same fresh adapter to proxy and FM."""
        summary: Mapping[str, Any] = {}
        if saved is not None:
            self._progress.stage("restore sub-FM")
            proxy, _ = self._restore(self._plain_fm, saved)
        else:
            made, summary = construct_once(
                self._plain_fm, self._public, self._config, self._progress, self._build, self._restore
            )
            proxy = made.sub_fm
        layer_map, lora, seed = self._layer_map, self._config.lora, derive_seed(self._config.seed, "adapter")
        self._fm = attach_lora(self._plain_fm, lora, seed, layer_map.tuned_in_fm)
        self._proxy = attach_lora(proxy, lora, seed, layer_map.tuned)
        self._order = adapter_order(self._fm, self._proxy, layer_map.pairs)
        return Proxy(model=self._proxy, watched_layers=(), construction=summary, layer_pairs=layer_map.pairs)

    def plug_in(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the FM with the proxy's adapter in the layers that it belongs to."""
        return plug_in(self._fm, adapter, self._order)

    def proxy_with(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the proxy with the adapter in it."""
        set_adapter(self._proxy, adapter)
        return self._proxy

    @abstractmethod
    def _build(self) -> BuiltSubFM:
        """Return all in which the proxy differs from the FM; what this reads stands in `sub_fm_ingredients`."""

    @abstractmethod
    def _restore(self, fm: PreTrainedModel, tensors: Mapping[str, Tensor]) -> tuple[PreTrainedModel, NeuronMap]:
        """Return the proxy that these tensors tell, and a map without neurons: no FFN was cut."""
