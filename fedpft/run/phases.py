"""A run's phases on models without values: how much memory each holds at most, by the run's own code.

Steps that repeat are made twice: from the second one on gradients, moments and activations are there together.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from fedpft.align.adapter import align_adapter
from fedpft.align.distill import align_emulator
from fedpft.align.public import AlignmentContext, PublicBatches, PublicData
from fedpft.align.public_counts import count_on_public
from fedpft.config import Config, ConfigError, LayerAlignConfig, NeuronAlignConfig, ServerConfig
from fedpft.construct.block_influence import block_influence
from fedpft.construct.compress import compress
from fedpft.construct.layer_drop import LayerMap, drop_layers
from fedpft.construct.saliency import named_scorer
from fedpft.data.collate import rows, text_lengths
from fedpft.data.datamodule import FederatedData
from fedpft.data.sources.subsets import subset
from fedpft.evaluation.evaluate import evaluate
from fedpft.evaluation.fidelity import measure_fidelity
from fedpft.federated.broadcast import client_package
from fedpft.federated.client import LocalClient
from fedpft.federated.messages import RoundPlan
from fedpft.federated.package import hungriest
from fedpft.interrupt import one_line
from fedpft.methods import influential_layers
from fedpft.methods.base import Proxy
from fedpft.methods.proxy_tuning import LAYER_ALIGNERS, NEURON_ALIGNERS, NUM_SALIENCY_EXAMPLES, SALIENCY_BATCH_SIZE
from fedpft.methods.sketch import Sketch
from fedpft.models.ffn import find_ffns
from fedpft.models.live_memory import DeviceKind, live_memory
from fedpft.models.lora import AdaptedModel, adapter_parameters
from fedpft.run.tuning import public_data

Phase = tuple[str, Callable[[], Any]]
"""Its name, and what does it."""

_NUM_STEPS = 2


@dataclass(frozen=True)
class Peaks:
    """The most bytes that live at once, by phase; and lines on phases that cannot be counted."""

    by_phase: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def __or__(self, other: "Peaks") -> "Peaks":
        return Peaks({**self.by_phase, **other.by_phase}, (*self.notes, *other.notes))


def construction_peaks(config: Config, sketch: Sketch, data: FederatedData, device: DeviceKind) -> Peaks:
    """Return what the server holds while the proxy is made: the FM, the proxy, and what works on them.

    Args:
        config: the run's.
        sketch: before it gets adapters.
        data: the run's.
        device: the server's.

    """
    server, public = _here(config.server), public_data(data)
    context = AlignmentContext(public=public, server=server, seed=config.server_seed)
    peaks = _peaks(_choice(config, sketch, public, server), [sketch.fm], device)
    if config.fm.pretrain.num_epochs:
        peaks |= Peaks({}, ("memory of 'pre-train FM' is not counted: FM, gradients, AdamW's moments, activations",))
    models, layers = (sketch.fm, sketch.proxy), sketch.compressed_layers
    settings = config.align.layers
    kinds = settings.kind.split("+") if layers else []
    context = replace(context, public=_longest_public(data, _NUM_STEPS * settings.batch_size))
    if "closed_form" in kinds:

        def refit_layers(fm: nn.Module, sub_fm: nn.Module, part: LayerAlignConfig, chosen: Sequence[int]) -> None:
            LAYER_ALIGNERS["closed_form"](fm, sub_fm, part, context, layers=chosen)

        name = "align layers in closed form"
        peaks |= _closed_form(name, settings, models, layers, device, refit_layers)
    few = replace(settings, kind="distill", num_steps=_NUM_STEPS)
    if "distill" in kinds:
        distil = partial(LAYER_ALIGNERS["distill"], *models, few, context, layers=layers)
        peaks |= _peaks([("align layers", distil)], models, device)
    chosen = sketch.layer_map
    if chosen is not None and config.method.name == "fedot" and settings.kind == "distill" and chosen.emulator:
        distil = partial(align_emulator, *models, few, context, layers=chosen.emulator, target=chosen.end_of_middle)
        peaks |= _peaks([("align emulator", distil)], models, device)
    return peaks


def round_peaks(config: Config, fm: AdaptedModel, proxy: Proxy, data: FederatedData, device: DeviceKind) -> Peaks:
    """Return what the server holds in the phases of a round: FM and proxy with their adapters, and what works on them.

    Args:
        config: the run's.
        fm, proxy: with adapters.
        data: the run's.
        device: the server's.

    """
    server, public, settings = _here(config.server), public_data(data), config.evaluation
    context = AlignmentContext(public=public, server=server, seed=config.server_seed)
    models = [fm] if proxy.is_fm else [fm, proxy.model]
    longest = _longest(data.evaluation, settings.batch_size)
    metrics = data.metrics if data.kind == "causal_lm" else ()  # of one number an example, they are nothing

    def score() -> None:
        for model in models:
            evaluate(
                model, subset(data.evaluation, longest), data.collate, metrics=metrics, batch_size=len(longest),
                server=server,
            )  # fmt: skip

    phases: list[Phase] = [("evaluate", score)]
    if settings.fidelity_examples and not proxy.is_fm:
        batch = data.collate(rows(data.evaluation, longest[: settings.fidelity_examples]))
        pairs, kept = proxy.layer_pairs, proxy.neurons
        meter = partial(measure_fidelity, fm, proxy.model, batch, server=server, layers=pairs, neurons=kept)
        phases.append(("measure fidelity", meter))
    if config.plugs_in_by == "distill" and not proxy.is_fm:
        steps = replace(config.align.adapter, num_steps=_NUM_STEPS)
        few = replace(context, public=_longest_public(data, 4 * steps.batch_size))  # a quarter of them is held out
        phases.append(("carry adapter over", partial(align_adapter, fm, proxy.model, steps, few)))
    neurons, watched = config.align.neurons, proxy.watched_layers
    if neurons.kind == "none" or not watched or neurons.interval >= config.federated.rounds:
        return _peaks(phases, models, device)
    if config.counts_neurons_on == "public":
        count = partial(count_on_public, proxy.model, watched, public, server=server, seed=config.seed)
        phases.append(("count activations", count))

    def align(fm: nn.Module, proxy: nn.Module, part: NeuronAlignConfig, layers: Sequence[int]) -> None:
        ffns = find_ffns(proxy)
        masks = {layer: torch.ones(ffns[layer].num_neurons, dtype=torch.bool) for layer in layers}
        NEURON_ALIGNERS[part.kind](fm, proxy, part, context, neuron_masks=masks)

    context = replace(context, public=_longest_public(data, _NUM_STEPS * neurons.batch_size))
    if neurons.kind == "closed_form":
        peaks = _peaks(phases, models, device)
        return peaks | _closed_form("align neurons", neurons, models, watched, device, align)
    few_steps = replace(neurons, num_steps=_NUM_STEPS)
    return _peaks([*phases, ("align neurons", partial(align, fm, proxy.model, few_steps, watched))], models, device)


def client_peak(config: Config, proxy: Proxy, data: FederatedData, device: DeviceKind) -> Peaks:
    """Return what a place holds that trains the client with the longest examples: the proxy, and what training adds."""
    package = client_package(config, proxy, data)
    tried = hungriest(package)
    tried = replace(tried, settings=replace(tried.settings, accelerator="cpu"))
    size = sum(parameter.numel() for parameter in adapter_parameters(proxy.model).values())
    plan = RoundPlan(
        round_index=1, lr=0.0, adapter=np.zeros(size, dtype=np.float32), count_activations=bool(proxy.watched_layers)
    )

    def train() -> None:
        LocalClient(tried).fit_together(plan, range(tried.partition.num_clients))

    return _peaks([("train a client", train)], [], device)


def _choice(config: Config, sketch: Sketch, public: PublicData, server: ServerConfig) -> list[Phase]:
    """Return what chooses the neurons or layers of the proxy, and makes it."""
    fm, settings = sketch.fm, config.method

    def batches() -> Iterator[Mapping[str, Tensor]]:
        keeps = settings.scorer not in ("activation", "random", "weight_norm")  # something of each batch
        num = NUM_SALIENCY_EXAMPLES if keeps else 2 * SALIENCY_BATCH_SIZE
        return _moved(public.batches(num, SALIENCY_BATCH_SIZE, config.server_seed))

    def cut() -> None:
        scorer = named_scorer(settings.scorer, config.server_seed, batches)
        whole = settings.uncompressed_layers
        compress(fm, retained_ratio=settings.retained_ratio, uncompressed_layers=whole, scorer=scorer)

    def influence() -> None:
        size = influential_layers.BATCH_SIZE
        block_influence(fm, _moved(public.batches(2 * size, size, config.server_seed)))

    by_name: dict[str, list[Phase]] = {
        "fedpft": [("construct sub-FM", cut)],
        "fedproxy": [("measure the influence of layers", influence)],
    }
    return by_name.get(settings.name, [])


def _closed_form(
    name: str,
    settings: LayerAlignConfig | NeuronAlignConfig,
    models: Sequence[nn.Module],
    layers: Sequence[int],
    device: DeviceKind,
    refit: Callable[..., object],
) -> Peaks:
    """Return the peak of a refit, which goes layer by layer: two stand for all, once the others' weights are added."""
    others, first, depth = models, max(0, layers[-1] - 1), len(find_ffns(models[0]))
    cut = range(first, min(first + 2, depth))
    with suppress(ConfigError):  # an FM whose layers depend on their numbers stays whole
        models = [drop_layers(model, LayerMap(kept=tuple(cut), adapter_layers=None)) for model in models]  # type: ignore[arg-type]
        layers = [layer - first for layer in layers if layer in cut]
    rest = sum(map(model_bytes, others)) - sum(map(model_bytes, models))
    found = _peaks([(name, partial(refit, *models, settings, layers))], models, device)
    return replace(found, by_phase={phase: rest + peak for phase, peak in found.by_phase.items()})


def model_bytes(model: nn.Module) -> int:
    """Return the size of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _peaks(phases: Sequence[Phase], models: Sequence[nn.Module], device: DeviceKind) -> Peaks:
    found, notes = dict[str, int](), list[str]()
    for name, work in phases:
        try:
            with warnings.catch_warnings(action="ignore"), live_memory(*models, device=device) as memory:
                work()
        except Exception as error:  # whatever a model says to tensors without values
            notes.append(f"memory of {name!r} is not counted: {one_line(error)}")
        else:
            found[name] = memory.peak_bytes
    return Peaks(found, tuple(notes))


def _here(server: ServerConfig) -> ServerConfig:
    """Return the settings for a process that moves nothing; float16 takes what bfloat16 takes."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true" if server.precision == "32-true" else "bf16-mixed"
    return replace(server, accelerator="cpu", devices=1, num_gpus=0, precision=precision)


def _moved(batches: PublicBatches) -> Iterator[Mapping[str, Tensor]]:
    return ({name: value.to("cpu") for name, value in batch.items()} for batch in batches)


def _longest(examples: datasets.Dataset, num: int) -> np.ndarray:
    """Return the rows of the longest examples."""
    lengths = text_lengths(examples)
    order = np.arange(len(examples)) if lengths is None else np.argsort(lengths, kind="stable")[::-1]
    return order[:num]


def _longest_public(data: FederatedData, num: int) -> PublicData:
    """Return the longest public examples alone, of which every batch takes as much as the largest of all."""
    return replace(public_data(data), dataset=subset(data.public, _longest(data.public, num)))
