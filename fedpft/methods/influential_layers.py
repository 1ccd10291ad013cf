"""FedProxy (Fan et al., ACL 2026): the layers of least influence are removed, all others carry the adapter.

Without any training on the server; the adapter goes back into the FM at the layers that it came from, and the FM's
other layers have none. The paper aggregates by H-TIES: `federated.aggregator.kind = h_ties`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedpft.align.public import PublicData
from fedpft.config import Config, ConfigError
from fedpft.construct.block_influence import block_influence, most_influential, num_kept
from fedpft.construct.cache import BuiltSubFM
from fedpft.construct.compress import NeuronMap
from fedpft.construct.layer_drop import LayerMap, drop_layers
from fedpft.methods.fewer_layers import FewerLayers
from fedpft.models.ffn import find_ffns
from fedpft.models.lora_targets import lora_targets
from fedpft.seeding import derive_seed
from fedpft.trainer import Progress, server_fabric

NUM_EXAMPLES, BATCH_SIZE = 256, 16
"""Public examples on which influence is measured."""


class InfluentialLayers(FewerLayers):
    """The proxy is the FM without its layers of least influence.

    Args:
        fm: the server's FM; gets an adapter of its own, its weights never change.
        public: unlabelled data on which influence is measured.
        config: the run's settings.
        progress: hears about the construction.

    Raises:
        ConfigError: more layers than the FM has, `lora.target_modules` that are not there, or an FM that cannot lose
            layers.

    """

    def __init__(self, fm: PreTrainedModel, public: PublicData, config: Config, progress: Progress) -> None:
        super().__init__(fm, public, config, progress)
        try:
            self._num_kept = num_kept(len(find_ffns(fm)), config.method.kept_layers)
        except ValueError as error:
            raise ConfigError(f"method.{error}") from None
        lora_targets(fm, config.lora)

    def saved_proxy(self) -> dict[str, Tensor]:
        """Return which layers the proxy has."""
        return {"kept_layers": torch.tensor(self._layer_map.kept)}

    def _build(self) -> BuiltSubFM:
        """Measure which layers matter; all that this reads stands in `sub_fm_ingredients`."""
        self._progress.stage("measure the influence of layers")
        seed, fabric = derive_seed(self._config.server_seed, "influence"), server_fabric(self._config.server)
        fabric.to_device(self._plain_fm)
        batches = (fabric.to_device(dict(batch)) for batch in self._public.batches(NUM_EXAMPLES, BATCH_SIZE, seed))
        influences = block_influence(self._plain_fm, batches)
        kept = most_influential(influences, self._num_kept)
        return BuiltSubFM(
            tensors={"kept_layers": torch.tensor(kept)},
            report={"block_influence": influences, "kept_layers": list(kept)},
        )

    def _restore(self, fm: PreTrainedModel, tensors: Mapping[str, Tensor]) -> tuple[PreTrainedModel, NeuronMap]:
        self._layer_map = LayerMap(kept=tuple(tensors["kept_layers"].tolist()), adapter_layers=None)
        return drop_layers(fm, self._layer_map), NeuronMap({})  # no FFN was cut
