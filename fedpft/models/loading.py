"""Models: from the hub, a folder, a Python package, or from scratch."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from fedpft.config import ConfigError, FMConfig, TaskKind
from fedpft.models.checks import check_kind, check_weights
from fedpft.models.depth import keep_layers
from fedpft.models.families import known_family
from fedpft.models.ffn import ffn_location, find_ffns
from fedpft.models.fields import check_direction, check_fields, neutralise
from fedpft.models.head import fit_head, untie
from fedpft.models.origin import Origin, remember_origin
from fedpft.models.precision import torch_dtype
from fedpft.models.sources import (
    SCRATCH,
    check_revision,
    from_pretrained,
    has_weights_here,
    is_from_scratch,
    loaded_commit,
    one_line,
)
from fedpft.seeding import derive_seed, isolated_torch_rng

Modality = Literal["text", "image"]
FFN_SIZES_FIELD = "ffn_sizes"
"""Field of a non-uniform sub-FM's config.json: neurons of each layer."""

_CLASSIFIERS: Mapping[Modality, Any] = {
    "text": AutoModelForSequenceClassification,
    "image": AutoModelForImageClassification,
}
"""Modality -> what opens a model with the head of its task."""


def load_fm_config(config: FMConfig, num_labels: int, kind: TaskKind = "classification") -> PretrainedConfig:
    """Return the FM's transformers config, without its weights.

    Args:
        config: the `fm` section.
        num_labels: outputs of the head; a language model has none of its own.
        kind: the task's.

    Raises:
        ConfigError: nothing to load at `fm.path`, a family without a row in `FFN_LOCATIONS` or, for `causal_lm`, one of
            encoders, or fields that it lacks.

    """
    return _configs(config, num_labels, kind)[1]


def architecture(
    config: FMConfig, modality: Modality, num_labels: int, kind: TaskKind = "classification"
) -> PreTrainedModel:
    """Return the FM without weights, on the meta device: all that its config tells, in milliseconds.

    Raises:
        ConfigError: as :func:`load_fm_config`, or an architecture that cannot be built.

    """
    fm_config = load_fm_config(config, num_labels, kind)
    fm_config.architectures = []
    with isolated_torch_rng(0), torch.device("meta"), one_line(_unbuildable(config)):
        return auto_model(modality, kind).from_config(fm_config, dtype=torch_dtype(config)).eval()


def _configs(config: FMConfig, num_labels: int, kind: TaskKind) -> tuple[PretrainedConfig, PretrainedConfig, list[str]]:
    """Return the stored config (that of a new FM: its own), the FM's, and lines on what of it is not followed."""
    check_revision(config)
    if is_from_scratch(config):
        fm_config = _scratch_config(config, num_labels, kind)
        return fm_config, fm_config, neutralise(fm_config)
    stored = from_pretrained(AutoConfig, config)
    known_family(stored.model_type, repr(config.path))
    check_kind(stored.model_type, config.path, kind)
    check_fields(stored, config.config)
    fm_config = from_pretrained(AutoConfig, config, **_head_fields(num_labels, kind), **config.config)
    check_direction(fm_config, config.path)
    if stored.num_hidden_layers > fm_config.num_hidden_layers > 0:
        keep_layers(fm_config, range(fm_config.num_hidden_layers))
    return stored, fm_config, neutralise(fm_config)


def load_fm(
    config: FMConfig,
    *,
    modality: Modality,
    num_labels: int,
    seed: int,
    kind: TaskKind = "classification",
    pad_token_id: int | None = None,
    label_names: Sequence[str] = (),
    empty: bool = False,
) -> PreTrainedModel:
    """Return the FM with a head for `num_labels` classes, in eval mode; a new head is initialised from `seed`.

    All weights are of `fm.dtype`, and were never of another; buffers have the type that the family gives them.

    For `causal_lm` it is the whole language model, with the head that it was pre-trained with. What was drawn at random
    or changed is told by :func:`fedpft.models.origin.origin_of`.

    Args:
        config: the `fm` section.
        modality: which kind of head.
        num_labels: classes of the head.
        seed: the run's.
        kind: the task's.
        pad_token_id: the tokenizer's; a decoder pools the last token that is not padding.
        label_names: of the classes, in order; a stored head is made one for them; empty: it stays as it is.
        empty: whether to leave it without weights, on the meta device; of its files then only names and shapes are
            read, and none where they are not on this machine.

    Raises:
        ConfigError: as :func:`load_fm_config`; files that cannot be read, weights for the backbone that are missing, of
            another shape, without a place or not finite, or an architecture that cannot be built.

    """
    auto, (stored, fm_config, notes) = auto_model(modality, kind), _configs(config, num_labels, kind)
    fm_config.architectures = []  # the class is the task's; DeiT's files name one with a teacher, which takes no labels
    new = is_from_scratch(config)
    with isolated_torch_rng(derive_seed(seed, "fm")):
        if new or (empty and not has_weights_here(config)):
            with one_line(_unbuildable(config)), torch.device("meta") if empty else nullcontext():
                fm = auto.from_config(fm_config, dtype=torch_dtype(config))
            random = ["*"] if new else []
            notes += [] if new else ["fm.path: its weights are not on this machine, and were not looked at"]
        else:
            fm, report = from_pretrained(
                auto,
                config,
                config=fm_config,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch_dtype(config),  # whatever the config says of the files: they may be more precise than that
                **({"device_map": "meta"} if empty else {}),
            )
            drawn = check_weights(fm, report, config)
            random = [*drawn]
            if kind == "classification" and label_names:
                redrawn, said = fit_head(fm, stored, label_names, drawn, seed)
                random, notes = random + redrawn, notes + said
    if pad_token_id is not None:
        fm.config.pad_token_id = pad_token_id
    notes += untie(fm)
    if random:
        notes.append(f"fm.path: drawn at random: {'all weights' if random == ['*'] else ', '.join(random)}")
    pooler = f"{fm.base_model_prefix}.pooler."
    origin = Origin(
        random_weights=tuple(sorted(random)),
        new_modules=("pooler",) if any(name.startswith(pooler) for name in random) else (),
        revision=None if empty else loaded_commit(config),
        notes=tuple(notes),
    )
    remember_origin(fm, origin)
    if config.dtype == "float32":
        fm.float()
    return fm.eval()


def auto_model(modality: Modality, kind: TaskKind) -> Any:
    """Return the class of transformers that opens models with the head of such a task."""
    return AutoModelForCausalLM if kind == "causal_lm" else _CLASSIFIERS[modality]


def _head_fields(num_labels: int, kind: TaskKind) -> dict[str, int]:
    return {} if kind == "causal_lm" else {"num_labels": num_labels}


def record_ffn_sizes(model: PreTrainedModel) -> None:
    """Write a model's FFN sizes into its config, so that it can be saved and opened again.

    Equal sizes go into the family's own field, if it has one: the folder then opens with plain `AutoModel`. Others go
    into `ffn_sizes`, and :func:`load_sub_fm` opens the folder.
    """
    sizes, field = [ffn.num_neurons for ffn in find_ffns(model)], ffn_location(model).size_field
    if len(set(sizes)) == 1 and field is not None:
        vars(model.config).pop(FFN_SIZES_FIELD, None)
        setattr(model.config, field, sizes[0])
    else:
        setattr(model.config, FFN_SIZES_FIELD, sizes)


def load_sub_fm(
    folder: str | Path, *, modality: Modality | None = None, kind: TaskKind | None = None
) -> PreTrainedModel:
    """Open a saved sub-FM, uniform or not, in eval mode.

    Args:
        folder: written by `save_pretrained` after :func:`record_ffn_sizes`.
        modality, kind: which head it has; None: the one that its files name.

    Raises:
        ConfigError: the folder holds no model.

    """
    try:
        stored = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"sub_fm: found {str(folder)!r} ({error}), allowed: the folder of a sub-FM") from None
    named = next(iter(stored.get("architectures") or ()), "")
    auto = auto_model(
        modality or ("image" if "ForImageClassification" in named else "text"),
        kind or ("causal_lm" if named.endswith(("ForCausalLM", "LMHeadModel")) else "classification"),
    )
    sizes = stored.get(FFN_SIZES_FIELD)
    if sizes is None:
        return auto.from_pretrained(folder).eval()
    with torch.device("meta"):
        model_class: Any = type(auto.from_config(AutoConfig.from_pretrained(folder)))

    class WithSizes(model_class):  # type: ignore[misc]
        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            resize_ffns(self, sizes)

    # by these transformers knows which weights it renames (GPT-NeoX's head)
    WithSizes.__name__, WithSizes.__module__ = model_class.__name__, model_class.__module__
    # through from_pretrained, because families rename their weights when they are saved (ViT)
    model = WithSizes.from_pretrained(folder)
    model.__class__ = model_class
    return model.eval()


def resize_ffns(model: PreTrainedModel, sizes: Sequence[int]) -> None:
    """Cut each layer's FFN down to its first `sizes[l]` neurons: a skeleton to load weights into."""
    for ffn, size in zip(find_ffns(model), sizes, strict=True):
        ffn.keep_neurons(torch.arange(size))


def _unbuildable(config: FMConfig) -> str:
    if not config.config and not is_from_scratch(config):
        return f"fm.path: found {config.path!r}, allowed: a config.json of an architecture that can be built"
    return f"fm.config: found {config.config}, allowed: an architecture that {config.path} can have"


def _scratch_config(config: FMConfig, num_labels: int, kind: TaskKind = "classification") -> PretrainedConfig:
    model_type = config.path.removeprefix(SCRATCH)
    known_family(model_type, repr(config.path))
    check_kind(model_type, config.path, kind)
    check_fields(AutoConfig.for_model(model_type), config.config)
    with one_line(f"fm.config: found {config.config}, allowed: fields that a {model_type} config can have"):
        return AutoConfig.for_model(model_type, **_head_fields(num_labels, kind), **config.config)
