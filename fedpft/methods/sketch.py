"""A method's proxy by its shapes alone, for a plan: of an FM without weights, with nothing read but settings."""

from dataclasses import dataclass, field

from transformers import PreTrainedModel

from fedpft.config import Config
from fedpft.construct.block_influence import num_kept
from fedpft.construct.compress import NeuronMap, compress
from fedpft.construct.layer_drop import LayerMap, choose_layers, drop_layers
from fedpft.construct.saliency import random_scorer
from fedpft.methods.base import Proxy
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import AdaptedModel, attach_lora


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What a method of this package makes of an FM: as many neurons or layers, whichever they will be."""

    fm: PreTrainedModel
    proxy: PreTrainedModel
    """The FM itself where clients tune that."""
    neurons: NeuronMap = field(default_factory=lambda: NeuronMap({}))
    """Which the proxy kept, of compressed FFNs."""
    layer_map: LayerMap | None = None
    """Of a proxy with fewer layers."""

    def with_adapters(self, config: Config) -> tuple[AdaptedModel, Proxy]:
        """Attach the adapter to both, in place."""
        tuned = (None, None) if self.layer_map is None else (self.layer_map.tuned_in_fm, self.layer_map.tuned)
        fm = attach_lora(self.fm, config.lora, 0, tuned[0])
        if self.proxy is self.fm:
            return fm, Proxy(model=fm, watched_layers=(), is_fm=True)
        proxy = attach_lora(self.proxy, config.lora, 0, tuned[1])
        pairs = None if self.layer_map is None else self.layer_map.pairs
        watched, kept = self.compressed_layers, self.neurons.retained
        return fm, Proxy(model=proxy, watched_layers=watched, layer_pairs=pairs, neurons=kept)

    @property
    def compressed_layers(self) -> tuple[int, ...]:
        """Layers whose FFN is smaller in the proxy, ascending."""
        return self.neurons.compressed_layers


def sketch(fm: PreTrainedModel, config: Config) -> Sketch:
    """Return the FM and its proxy without adapters.

    Args:
        fm: on the meta device; it may be the proxy.
        config: the run's, of a method of this package that was made once for such an FM, and so checked.

    """
    settings, num_layers = config.method, len(find_ffns(fm))
    if settings.name == "full":
        return Sketch(fm=fm, proxy=fm)
    if settings.name == "fedpft":
        ratio, whole = settings.retained_ratio, settings.uncompressed_layers
        proxy, neurons = compress(fm, retained_ratio=ratio, uncompressed_layers=whole, scorer=random_scorer(0))
        return Sketch(fm=fm, proxy=proxy, neurons=neurons)
    if settings.name == "fedot":
        layers = choose_layers(num_layers, adapter_layers=settings.adapter_layers, kept_layers=settings.kept_layers)
    else:
        layers = LayerMap(kept=tuple(range(num_kept(num_layers, settings.kept_layers))), adapter_layers=None)
    return Sketch(fm=fm, proxy=drop_layers(fm, layers), layer_map=layers)
