"""The parts of the method on models of one's own, without federated learning: compress, align, plug in, measure."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedpft.align.public import AlignmentContext, AlignmentReport, PublicData
from fedpft.api.quiet import quiet_libraries
from fedpft.api.result import Result
from fedpft.config import LayerAlignConfig, LoraConfig, ServerConfig
from fedpft.config.method import SCORER_NAMES
from fedpft.construct.compress import compress as compress_ffns
from fedpft.construct.saliency import Scorer, named_scorer
from fedpft.data.collate import CausalCollator, ImageCollator
from fedpft.data.corpora.chunks import chunk_corpus
from fedpft.data.sources.columns import IMAGE, TEXT
from fedpft.data.sources.errors import fail
from fedpft.data.sources.memory import as_dataset
from fedpft.evaluation.fidelity import Fidelity, measure_fidelity
from fedpft.methods.construction import warn_if_useless
from fedpft.methods.proxy_tuning import LAYER_ALIGNERS, NUM_SALIENCY_EXAMPLES, SALIENCY_BATCH_SIZE
from fedpft.models.ffn import find_backbone, find_ffns
from fedpft.models.layerwise import check_layer_by_layer
from fedpft.models.loading import load_sub_fm
from fedpft.models.lora import AdaptedModel, attach_lora, load_adapter
from fedpft.seeding import derive_seed, numpy_rng

__all__ = ["align", "compress", "fidelity", "load_sub_fm", "plug_in"]

CHUNK_LENGTH = 128
"""Tokens of a chunk, where the model takes so many."""


@quiet_libraries()
def compress(
    model: PreTrainedModel,
    ratio: float = 0.25,
    *,
    scorer: str | Scorer = "weight_norm",
    public: Any = None,
    tokenizer: Any = None,
    uncompressed_layers: Sequence[int] = (),
    seed: int = 42,
) -> PreTrainedModel:
    """Return a sub-FM: a copy of a model whose FFNs keep their most salient neurons; the model is not changed.

    Args:
        model: a transformers model, with or without head, of a family in `fedpft.models.families.FFN_LOCATIONS`.
        ratio: neurons kept in every compressed FFN, a fraction in (0, 1]: `method.retained_ratio`.
        scorer: `weight_norm`, `random`; with public data `activation` or `greedy`, which pays before an
            :func:`align` in closed form; or a function of (model, its FFNs) that returns one (N,) tensor for each FFN.
        public: unlabelled texts or images: a list, a `datasets.Dataset`, a DataFrame.
        tokenizer: the model's tokenizer, or its image processor.
        uncompressed_layers: layers left whole; negative numbers count from the last.
        seed: of what is drawn from the public data, and of the `random` scorer.

    Raises:
        ConfigError: no model, an unknown scorer, public data or a tokenizer that are missing or do not fit.
        ValueError: a ratio or layer that cannot be, or an unknown family.

    """
    _require_model("model", model)
    if isinstance(scorer, str):
        if scorer not in SCORER_NAMES:
            fail("scorer", scorer, f"{', '.join(SCORER_NAMES)}, or a function of (model, its FFNs)")
        examples = None if public is None else _public_data(model, public, tokenizer, seed)

        def batches() -> list[Mapping[str, Tensor]]:
            if examples is None:
                fail("public", None, f"texts or images, because scorer is {scorer}")
            drawn = examples.batches(NUM_SALIENCY_EXAMPLES, SALIENCY_BATCH_SIZE, derive_seed(seed, "saliency"))
            return [{name: value.to(model.device) for name, value in batch.items()} for batch in drawn]

        scorer = named_scorer(scorer, derive_seed(seed, "saliency"), batches)
    sub_fm, _ = compress_ffns(model, retained_ratio=ratio, uncompressed_layers=uncompressed_layers, scorer=scorer)
    return sub_fm


@quiet_libraries()
def align(
    fm: PreTrainedModel,
    sub_fm: PreTrainedModel,
    *,
    public: Any,
    tokenizer: Any = None,
    kind: str | None = None,
    config: LayerAlignConfig | None = None,
    server: ServerConfig | None = None,
    seed: int = 42,
) -> AlignmentReport:
    """Bring a sub-FM's hidden states back to the FM's, in place; the FM is not changed.

    Args:
        fm: the model that the sub-FM was made from.
        sub_fm: of :func:`compress`; its compressed layers change.
        public: unlabelled texts or images, as for :func:`compress`.
        tokenizer: the model's tokenizer, or its image processor.
        kind: `closed_form` (seconds), `distill` (the paper's) or `closed_form+distill`; None: the config's, or
            `closed_form` without one.
        config: steps, rates and sizes, the `align.layers` section.
        server: device and precision.
        seed: of the draw of examples.

    Returns:
        The loss, mean over the aligned layers of `|H_fm - H_sub|^2 / |H_fm|^2`: `measured_before` and `measured_after`
        on the same public examples. A warning says so if it is not lower afterwards.

    Raises:
        ConfigError: no models, public data that do not fit, a family that the kind cannot align, or no layer of the
            sub-FM is smaller than the FM's.

    """
    for key, model in (("fm", fm), ("sub_fm", sub_fm)):
        _require_model(key, model)
    settings = config or LayerAlignConfig(kind="closed_form")
    kinds = (kind or settings.kind).split("+")
    if unknown := [name for name in kinds if name not in LAYER_ALIGNERS]:
        fail("kind", unknown[0], f"{', '.join(LAYER_ALIGNERS)}, or two joined by +")
    sizes = [[ffn.num_neurons for ffn in find_ffns(model)] for model in (fm, sub_fm)]
    layers = [layer for layer, (full, cut) in enumerate(zip(*sizes, strict=True)) if cut < full]
    if not layers:
        fail(
            "sub_fm",
            f"FFNs of {sizes[1]} neurons",
            f"a model of which one FFN at least is smaller than the FM's {sizes[0]}",
        )
    if "closed_form" in kinds:
        check_layer_by_layer(fm, "kind")
    examples = _public_data(fm, public, tokenizer, seed)
    num_examples = len(cast(Any, examples.dataset))
    if "closed_form" in kinds and num_examples <= settings.batch_size:
        size = settings.batch_size
        allowed = (
            f"more than one batch of {size}: more public data, or a smaller batch_size in config=LayerAlignConfig(...)"
        )
        fail("public", f"{num_examples} chunks or images", allowed)
    context = AlignmentContext(public=examples, server=server or ServerConfig(), seed=derive_seed(seed, "align_layers"))
    reports = [LAYER_ALIGNERS[name](fm, sub_fm, settings, context, layers=layers) for name in kinds]
    first, last = reports[0], reports[-1]
    warn_if_useless("align", first.measured_before, last.measured_after)
    return replace(last, first_loss=first.first_loss, measured_before=first.measured_before)


@quiet_libraries()
def plug_in(fm: PreTrainedModel, adapter: str | Path | Result) -> AdaptedModel:
    """Put a tuned adapter into an FM and return it, in eval mode.

    Args:
        fm: the plain model with a head for the same task; it is changed.
        adapter: a folder in PEFT's format, e.g. a run's `adapter`; or a run's result.

    Raises:
        ConfigError: the adapter cannot be read, or is not one for this FM.

    """
    return load_adapter(fm, adapter.path / "adapter" if isinstance(adapter, Result) else Path(adapter))


@quiet_libraries()
def fidelity(
    fm: PreTrainedModel | AdaptedModel,
    sub_fm: PreTrainedModel | AdaptedModel,
    batch: Mapping[str, Tensor],
    *,
    lora: LoraConfig | None = None,
    server: ServerConfig | None = None,
    seed: int = 42,
) -> Fidelity:
    """Measure how far a sub-FM is from its FM, layer by layer, in hidden states and in LoRA gradients.

    Args:
        fm, sub_fm: two plain models, which get the same fresh adapter in copies; or both with the same adapter.
        batch: inputs of both and their `labels`, (B,), or for language models (B, T): what a tokenizer returns with
            `return_tensors="pt"`, and `labels` beside it.
        lora: of the fresh adapter.
        server: device.
        seed: of the fresh adapter.

    Raises:
        ConfigError: no models, or a batch that is no mapping of names to tensors.
        ValueError: no labels, models of different depths, or two adapters.

    """
    for key, model in (("fm", fm), ("sub_fm", sub_fm)):
        _require_model(key, model)
    if not isinstance(batch, Mapping):
        fail("batch", type(batch).__name__, "names -> tensors: what the tokenizer returns, and `labels`")
    if not isinstance(fm, AdaptedModel) and not isinstance(sub_fm, AdaptedModel):
        fresh = derive_seed(seed, "adapter")
        fm, sub_fm = (attach_lora(copy.deepcopy(model), lora or LoraConfig(), fresh) for model in (fm, sub_fm))
    elif not (isinstance(fm, AdaptedModel) and isinstance(sub_fm, AdaptedModel)):
        raise ValueError("sub_fm: found an adapter in one model alone, allowed: the same in both, or none")
    return measure_fidelity(fm, sub_fm, batch, server=server or ServerConfig())


def _require_model(key: str, model: object) -> None:
    if not isinstance(model, Module):
        fail(key, model if isinstance(model, str) else type(model).__name__, "a model, e.g. of from_pretrained(...)")


def _public_data(model: PreTrainedModel, public: Any, tokenizer: Any, seed: int) -> PublicData:
    """Return examples that the model takes: chunks of text, or images."""
    if isinstance(public, PublicData):
        return public
    if tokenizer is None:
        fail("tokenizer", None, "the model's tokenizer or image processor, beside public data")
    rows = as_dataset(public, "public")
    wanted = TEXT if isinstance(tokenizer, PreTrainedTokenizerBase) else IMAGE
    if wanted not in rows.column_names:
        fail("public", f"columns {', '.join(rows.column_names)}", f"{wanted}s, in a list or in a column {wanted}")
    if wanted == IMAGE:
        return PublicData(dataset=cast(Any, rows.select_columns([IMAGE])), collate=ImageCollator(tokenizer))
    longest = getattr(find_backbone(model).config, "max_position_embeddings", None) or CHUNK_LENGTH
    length = min(CHUNK_LENGTH, tokenizer.model_max_length, longest - 2)  # two: RoBERTa's positions begin at 2
    chunks = chunk_corpus(rows.select_columns([TEXT]), tokenizer, length, None, numpy_rng(seed, "public"))
    return PublicData(dataset=cast(Any, chunks), collate=CausalCollator(tokenizer.pad_token_id or 0))
