"""FedPETuning: clients tune the adapter on the FM itself; the upper bound, with no privacy for the FM."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.config import Config
from fedpft.methods.base import FixedProxy, Proxy
from fedpft.methods.plugin import plug_in
from fedpft.models.lora import AdaptedModel, attach_lora
from fedpft.models.lora_targets import lora_targets
from fedpft.seeding import derive_seed
from fedpft.trainer import Progress


class FullModel(FixedProxy):
    """The proxy is the FM: one model with one adapter, nothing to construct or align.

    Args:
        fm: the server's FM; gets an adapter, its weights never change.
        public: not read.
        config: the run's settings.
        progress: hears nothing.

    Raises:
        ConfigError: `lora.target_modules` that the FM does not have.

    """

    def __init__(self, fm: PreTrainedModel, public: PublicData, config: Config, progress: Progress) -> None:
        lora_targets(fm, config.lora)
        self._plain_fm, self._config = fm, config

    def build_proxy(self, saved: Mapping[str, Tensor] | None = None) -> Proxy:
        """Attach a fresh adapter to the FM; nothing of it is ever saved."""
        self._fm = attach_lora(self._plain_fm, self._config.lora, derive_seed(self._config.seed, "adapter"))
        return Proxy(model=self._fm, watched_layers=(), is_fm=True)

    def saved_proxy(self) -> dict[str, Tensor]:
        """Return nothing: the proxy is the FM."""
        return {}

    def plug_in(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the FM with the adapter in it."""
        return plug_in(self._fm, adapter)

    def proxy_with(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the same."""
        return self.plug_in(adapter)
