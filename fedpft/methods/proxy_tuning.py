"""FedPFT: clients tune a compressed sub-FM that the server keeps aligned with the FM.

The ablations are settings of it: `align.layers.kind` and `align.neurons.kind` `none` give FedPFT_N (both), FedPFT_D (no
layer-level) and FedPFT_B (no neuron-level).
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedpft.align.distill import PublicData, align_layers, align_neurons
from fedpft.align.selection import average_percentage_of_zeros, least_used
from fedpft.config import Config, ConfigError
from fedpft.construct.compress import NeuronMap, compress, resolve_layers, restore_sub_fm, sub_fm_tensors
from fedpft.construct.saliency import Scorer, activation_scorer, random_scorer, weight_norm
from fedpft.methods.base import Proxy, ProxyChange
from fedpft.models.activations import ActivationCounts
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import AdaptedModel, attach_lora, lora_targets, set_adapter
from fedpft.plugin import check_same_layout, plug_in
from fedpft.seeding import derive_seed
from fedpft.trainer import Progress

NUM_SALIENCY_BATCHES = 32
"""Public batches that the `activation` scorer reads: enough for its ranking to settle, seconds of work."""


class ProxyTuning:
    """The paper's method.

    Args:
        fm: the server's FM; gets an adapter of its own, its weights never change.
        public: unlabelled data for the alignments (and the `activation` scorer).
        config: the run's settings.
        progress: hears about construction and alignments.

    Raises:
        ConfigError: `method.uncompressed_layers` or `lora.target_modules` that the FM does not have.

    """

    def __init__(self, fm: PreTrainedModel, public: PublicData, config: Config, progress: Progress) -> None:
        self._public, self._config, self._progress = public, config, progress
        try:
            resolve_layers(config.method.uncompressed_layers, len(find_ffns(fm)))
        except ValueError as error:
            raise ConfigError(f"method.{error}") from None
        lora_targets(fm, config.lora)  # a typo should not wait for the end of the alignment
        self._plain_fm = fm

    def build_proxy(self, saved: Mapping[str, Tensor] | None = None) -> Proxy:
        """Compress the FM and align the sub-FM layer by layer, or restore it; attach the same fresh adapter to both."""
        config = self._config
        if saved is not None:
            self._progress.stage("restore sub-FM")
            return self._with_adapters(*restore_sub_fm(self._plain_fm, saved))
        self._progress.stage("construct sub-FM")
        sub_fm, neuron_map = compress(
            self._plain_fm,
            retained_ratio=config.method.retained_ratio,
            uncompressed_layers=config.method.uncompressed_layers,
            scorer=self._scorer(),
        )
        if config.align.layers.kind == "distill" and neuron_map.compressed_layers:
            self._progress.stage("align layers")
            align_layers(
                self._plain_fm,
                sub_fm,
                layers=neuron_map.compressed_layers,
                public=self._public,
                config=config.align.layers,
                server=config.server,
                seed=derive_seed(config.seed, "align_layers"),
                on_step=self._progress.progress,
            )
        return self._with_adapters(sub_fm, neuron_map)

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
        self._progress.stage("align neurons")
        report = align_neurons(
            self.plug_in(adapter),
            self.proxy_with(adapter),
            neuron_masks=masks,
            public=self._public,
            config=config.align.neurons,
            server=config.server,
            seed=derive_seed(config.seed, "align_neurons", round_index),
            on_step=self._progress.progress,
        )
        metrics = {
            "align/loss_before": report.first_loss,
            "align/loss": report.last_loss,
        }
        return ProxyChange(weights=self._ffn_weights(), metrics=metrics)

    def plug_in(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the FM with the adapter in it."""
        return plug_in(self._fm, adapter)

    def proxy_with(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the sub-FM with the adapter in it."""
        set_adapter(self._sub_fm, adapter)
        return self._sub_fm

    def _with_adapters(self, sub_fm: PreTrainedModel, neuron_map: NeuronMap) -> Proxy:
        self._neuron_map, self._compressed_layers = neuron_map, neuron_map.compressed_layers
        adapter_seed = derive_seed(self._config.seed, "adapter")
        self._fm = attach_lora(self._plain_fm, self._config.lora, adapter_seed)
        self._sub_fm = attach_lora(sub_fm, self._config.lora, adapter_seed)
        check_same_layout(self._fm, self._sub_fm)
        return Proxy(model=self._sub_fm, watched_layers=self._compressed_layers)

    def _scorer(self) -> Scorer:
        kind = self._config.method.scorer
        if kind == "activation":
            return activation_scorer(self._public_batches())
        return random_scorer(derive_seed(self._config.seed, "saliency")) if kind == "random" else weight_norm

    def _public_batches(self) -> Iterator[Mapping[str, Tensor]]:
        dataset, size = self._public.dataset, self._config.align.layers.batch_size
        for start in range(0, min(len(dataset), NUM_SALIENCY_BATCHES * size), size):  # type: ignore[arg-type]
            examples = [dataset[i] for i in range(start, min(start + size, len(dataset)))]  # type: ignore[arg-type]
            yield {name: value for name, value in self._public.collate(examples).items() if name != "labels"}

    def _ffn_weights(self) -> dict[str, np.ndarray]:
        ffns = find_ffns(self._sub_fm)
        changed = {id(p) for layer in self._compressed_layers for p in ffns[layer].parameters()}
        return {
            name: parameter.detach().cpu().numpy().copy()
            for name, parameter in self._sub_fm.named_parameters()
            if id(parameter) in changed
        }
