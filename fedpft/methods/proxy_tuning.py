"""FedPFT: clients tune a compressed sub-FM that the server keeps aligned with the FM.

The ablations are settings of it: `align.layers.kind` and `align.neurons.kind` `none` give FedPFT_N (both), FedPFT_D (no
layer-level) and FedPFT_B (no neuron-level).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedpft.align.closed_form import refit_layers, refit_neurons
from fedpft.align.distill import align_layers, align_neurons
from fedpft.align.public import AlignmentContext, PublicData
from fedpft.align.selection import average_percentage_of_zeros, least_used
from fedpft.config import Config, ConfigError
from fedpft.construct.cache import BuiltSubFM
from fedpft.construct.compress import NeuronMap, compress, resolve_layers, restore_sub_fm, sub_fm_tensors
from fedpft.construct.saliency import Scorer, named_scorer
from fedpft.methods.base import Proxy, ProxyChange
from fedpft.methods.construction import built, construct_once, require_finite, warn_if_useless
from fedpft.methods.plugin import adapter_order, plug_in
from fedpft.models.activations import ActivationCounts
from fedpft.models.ffn import find_ffns
from fedpft.models.layerwise import check_layer_by_layer
from fedpft.models.lora import AdaptedModel, attach_lora, set_adapter
from fedpft.models.lora_targets import has_lora_on_down, lora_targets
from fedpft.models.weights import as_array
from fedpft.seeding import derive_seed
from fedpft.trainer import Progress, server_fabric

LAYER_ALIGNERS = {"distill": align_layers, "closed_form": refit_layers}
NEURON_ALIGNERS = {"distill": align_neurons, "closed_form": refit_neurons}
"""By `align.layers.kind` (one, or two joined by `+`) and `align.neurons.kind`."""

NUM_SALIENCY_EXAMPLES, SALIENCY_BATCH_SIZE = 256, 16
"""Public examples that a scorer reads: enough for its ranking to settle, seconds of work."""


class ProxyTuning:
    """The paper's method.

    Args:
        fm: the server's FM; gets an adapter of its own, its weights never change.
        public: unlabelled data for the alignments (and the `activation` scorer).
        config: the run's settings.
        progress: hears about construction and alignments.

    Raises:
        ConfigError: `method.uncompressed_layers` or `lora.target_modules` that the FM does not have; later, alignment
            settings that end in NaN.

    """

    def __init__(self, fm: PreTrainedModel, public: PublicData, config: Config, progress: Progress) -> None:
        self._public, self._config, self._progress = public, config, progress
        try:
            resolve_layers(config.method.uncompressed_layers, len(find_ffns(fm)))
        except ValueError as error:
            raise ConfigError(f"method.{error}") from None
        lora_targets(fm, config.lora)  # a typo should not wait for the end of the alignment
        _check_refit_of_neurons(fm, config)
        for level in ("layers", "neurons"):
            if "closed_form" in getattr(config.align, level).kind:
                check_layer_by_layer(fm, f"align.{level}.kind")
        self._plain_fm, self._fabric = fm, server_fabric(config.server)

    def build_proxy(self, saved: Mapping[str, Tensor] | None = None) -> Proxy:
        """Compress the FM and align the sub-FM layer by layer, or restore it; attach the same fresh adapter to both."""
        if saved is not None:
            self._progress.stage("restore sub-FM")
            return self._with_adapters(*restore_sub_fm(self._plain_fm, saved), {})
        made, summary = construct_once(self._plain_fm, self._public, self._config, self._progress, self._build_sub_fm)
        return self._with_adapters(made.sub_fm, made.neuron_map, summary)

    def saved_proxy(self) -> dict[str, Tensor]:
        """Return the sub-FM's FFNs and which neurons they kept."""
        return sub_fm_tensors(self._sub_fm, self._neuron_map)

    def wants_counts(self, round_index: int, num_rounds: int) -> bool:
        """Whether a neuron-level alignment follows this round: every t rounds, but not after the last one."""
        neurons = self._config.align.neurons
        if neurons.kind == "none" or not self._compressed_layers:
            return False
        return round_index % neurons.interval == 0 and round_index < num_rounds

    def after_round(self, round_index: int, adapter: np.ndarray, counts: ActivationCounts) -> ProxyChange:
        """Re-align the neurons that the task uses least, teacher and student both with the current global adapter."""
        config = self._config
        masks: dict[int, Tensor] = {}
        for layer, zeros, positions in zip(self._compressed_layers, counts.zeros, counts.positions, strict=True):
            apoz = average_percentage_of_zeros(torch.from_numpy(zeros), int(positions))
            masks[layer] = least_used(apoz, config.align.neurons.update_ratio)
        before = self._ffn_weights()
        self._progress.stage("align neurons")
        report = NEURON_ALIGNERS[config.align.neurons.kind](
            self.plug_in(adapter),
            self.proxy_with(adapter),
            config.align.neurons,
            self._context(derive_seed(config.seed, "align_neurons", round_index)),
            neuron_masks=masks,
        )
        metrics = {
            "align/loss_before": report.first_loss,
            "align/loss": report.last_loss,
            "align/measured_loss_before": report.measured_before,
            "align/measured_loss": report.measured_after,
        }
        alignment = f"align.neurons.kind = {config.align.neurons.kind}, round {round_index},"
        warn_if_useless(alignment, report.measured_before, report.measured_after)
        weights = self._ffn_weights()
        require_finite(self._ffn_parameters(), "align.neurons")
        changed = {name: new for name, new in weights.items() if not np.array_equal(new, before[name])}
        return ProxyChange(weights=changed, metrics=metrics)

    def plug_in(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the FM with the adapter in it."""
        return plug_in(self._fm, adapter, self._order)

    def proxy_with(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the sub-FM with the adapter in it."""
        set_adapter(self._sub_fm, adapter)
        return self._sub_fm

    def _with_adapters(self, sub_fm: PreTrainedModel, neuron_map: NeuronMap, summary: Mapping[str, Any]) -> Proxy:
        self._neuron_map, self._compressed_layers = neuron_map, neuron_map.compressed_layers
        adapter_seed = derive_seed(self._config.seed, "adapter")
        self._fm = attach_lora(self._plain_fm, self._config.lora, adapter_seed)
        self._sub_fm = attach_lora(sub_fm, self._config.lora, adapter_seed)
        kept = neuron_map.retained
        self._order = adapter_order(self._fm, self._sub_fm, neurons=kept)
        return Proxy(model=self._sub_fm, watched_layers=self._compressed_layers, construction=summary, neurons=kept)

    def _build_sub_fm(self) -> BuiltSubFM:
        """Compress the FM and align the layers; all that this reads stands in `sub_fm_ingredients`."""
        config = self._config
        self._progress.stage("construct sub-FM")
        self._fabric.to_device(self._plain_fm)
        sub_fm, neuron_map = compress(
            self._plain_fm,
            retained_ratio=config.method.retained_ratio,
            uncompressed_layers=config.method.uncompressed_layers,
            scorer=self._scorer(),
        )
        reports = {}
        for kind in config.align.layers.kind.split("+") if neuron_map.compressed_layers else ():
            if kind == "none":
                continue
            self._progress.stage("align layers" if kind == "distill" else "align layers in closed form")
            reports[kind] = LAYER_ALIGNERS[kind](
                self._plain_fm,
                sub_fm,
                config.align.layers,
                self._context(derive_seed(config.server_seed, "align_layers")),
                layers=neuron_map.compressed_layers,
            )
        return built(sub_fm_tensors(sub_fm, neuron_map), reports)

    def _context(self, seed: int) -> AlignmentContext:
        progress = self._progress.progress
        return AlignmentContext(public=self._public, server=self._config.server, seed=seed, on_step=progress)

    def _scorer(self) -> Scorer:
        seed = derive_seed(self._config.server_seed, "saliency")

        def batches() -> Iterator[Mapping[str, Tensor]]:
            public = self._public.batches(NUM_SALIENCY_EXAMPLES, SALIENCY_BATCH_SIZE, seed)
            return (self._fabric.to_device(dict(batch)) for batch in public)

        return named_scorer(self._config.method.scorer, seed, batches)

    def _ffn_weights(self) -> dict[str, np.ndarray]:
        return {name: as_array(parameter) for name, parameter in self._ffn_parameters().items()}

    def _ffn_parameters(self) -> dict[str, nn.Parameter]:
        ffns = find_ffns(self._sub_fm)
        changed = {id(p) for layer in self._compressed_layers for p in ffns[layer].parameters()}
        return {name: parameter for name, parameter in self._sub_fm.named_parameters() if id(parameter) in changed}


def _check_refit_of_neurons(fm: PreTrainedModel, config: Config) -> None:
    """Refuse to refit `down` where a norm adds it and its LoRA to the residual stream together: not linear in `down`.

    Raises:
        ConfigError: neuron-level alignment in closed form, LoRA on `down`, and a family with such a norm.

    """
    has_norm = any(ffn.output_norm is not None for ffn in find_ffns(fm))
    if config.align.neurons.kind == "closed_form" and has_norm and has_lora_on_down(fm, config.lora):
        family = fm.config.model_type
        found = f"closed_form with LoRA on the FFNs of {family}, which has a norm behind them"
        raise ConfigError(f"align.neurons.kind: found {found}, allowed: distill, none")
