"""FedOT, offsite tuning (Xiao et al. 2023, arXiv 2302.04870): clients tune a proxy of fewer layers.

The first and last layers carry the adapter; the layers kept in between are a frozen emulator of the FM's middle, as
they are or distilled. The adapter goes back into the FM at the layers that it came from.
"""

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from fedpft.align.distill import align_emulator
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.config import Config, ConfigError
from fedpft.construct.cache import BuiltSubFM
from fedpft.construct.compress import NeuronMap
from fedpft.construct.layer_drop import choose_layers, drop_layers, emulator_tensors, restore_emulator
from fedpft.methods.construction import built
from fedpft.methods.fewer_layers import FewerLayers
from fedpft.models.ffn import find_ffns
from fedpft.models.lora_targets import lora_targets
from fedpft.seeding import derive_seed
from fedpft.trainer import Progress


class OffsiteTuning(FewerLayers):
    """The proxy is the FM without some of its middle layers.

    Args:
        fm: the server's FM; gets an adapter of its own, its weights never change.
        public: unlabelled data for the distillation of the emulator.
        config: the run's settings.
        progress: hears about construction and distillation.

    Raises:
        ConfigError: numbers of layers that the FM does not have, `lora.target_modules` that are not in these layers, or
            an FM that cannot lose layers; later, alignment settings that end in NaN.

    """

    def __init__(self, fm: PreTrainedModel, public: PublicData, config: Config, progress: Progress) -> None:
        super().__init__(fm, public, config, progress)
        settings, num_layers = config.method, len(find_ffns(fm))
        try:
            self._layer_map = choose_layers(
                num_layers, adapter_layers=settings.adapter_layers, kept_layers=settings.kept_layers
            )
        except ValueError as error:
            raise ConfigError(f"method.{error}") from None
        lora_targets(fm, config.lora, self._layer_map.tuned_in_fm)
        dropped = num_layers > len(self._layer_map.kept)
        self._distils = config.align.layers.kind == "distill" and dropped and bool(self._layer_map.emulator)

    def saved_proxy(self) -> dict[str, Tensor]:
        """Return the emulator's weights."""
        return emulator_tensors(self._proxy, self._layer_map)

    def _build(self) -> BuiltSubFM:
        """Drop layers and distil the emulator; all that this reads stands in `sub_fm_ingredients`."""
        config, layer_map, reports = self._config, self._layer_map, {}
        self._progress.stage("construct sub-FM")
        proxy = drop_layers(self._plain_fm, layer_map)
        if self._distils:
            self._progress.stage("align emulator")
            context = AlignmentContext(
                public=self._public,
                server=config.server,
                seed=derive_seed(config.server_seed, "align_layers"),
                on_step=self._progress.progress,
            )
            layers, target = layer_map.emulator, layer_map.end_of_middle
            reports["distill"] = align_emulator(
                self._plain_fm, proxy, config.align.layers, context, layers=layers, target=target
            )
        return built(emulator_tensors(proxy, layer_map), reports)

    def _restore(self, fm: PreTrainedModel, tensors: Mapping[str, Tensor]) -> tuple[PreTrainedModel, NeuronMap]:
        return restore_emulator(fm, self._layer_map, tensors), NeuronMap({})  # no FFN was cut
