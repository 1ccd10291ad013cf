"""What is refused of an FM, each in one line: its family, the files beside it, its weights."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from fedpft.config import ConfigError, FMConfig, TaskKind
from fedpft.models.families import FFN_LOCATIONS
from fedpft.models.ffn import ffn_location, find_ffns

DECODERS = sorted(
    FFN_LOCATIONS.keys() & MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
)
"""Families that predict the next token. Encoders that transformers can run so too (bert) learned to fill in masks."""

OLD_BUFFERS = re.compile(r"(^|\.)(position_ids|inv_freq|(attn|attention)\.(masked_)?bias|decoder\.version)$")
"""Of a backbone's stored tensors, those that transformers once saved and now computes."""

UNUSED_PARTS = re.compile(r"(^|\.)(pooler\.|mask_token$)")
"""Those that a classifier of its family never reads: it pools otherwise, it masks no patches."""


def check_kind(model_type: str, path: str, kind: TaskKind) -> None:
    """Raise a ConfigError for a family that has no head for a task of that kind."""
    if kind == "causal_lm":
        _check_decoder(model_type, path)
    else:
        _check_classifier(model_type, path)


def _check_decoder(model_type: str, path: str) -> None:
    if model_type not in DECODERS:
        raise ConfigError(
            f"fm.path: found {path!r} of model type {model_type!r}, allowed for a task of kind causal_lm: a decoder, "
            f"{', '.join(DECODERS)}"
        )


def _check_classifier(model_type: str, path: str) -> None:
    if model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES | MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise ConfigError(
            f"fm.path: found {path!r} of model type {model_type!r}, of which transformers has no classifier, allowed: "
            "one of another family, or a task of kind causal_lm"
        )


def check_no_adapter(path: str, revision: str | None) -> None:
    """Raise a ConfigError for files of an adapter beside an FM's, which transformers would load unasked.

    Args:
        path: a folder or a hub id.
        revision: of the hub's.

    """
    if find_adapter_config_file(path, revision=revision) is not None:
        found = f"{path!r} with {ADAPTER_CONFIG_NAME}: an adapter that transformers would put into the FM"
        raise ConfigError(f"fm.path: found {found}, allowed: an FM alone (merge the adapter, or move its files away)")


def check_weights(fm: PreTrainedModel, report: Mapping[str, Any], config: FMConfig) -> dict[str, bool]:
    """Refuse an FM that is not wholly the stored one, or not finite.

    Only the head of a classifier, and its pooler, may start from random weights: clients tune them. A language model's
    is never tuned.

    Args:
        fm: just loaded.
        report: transformers' on its loading.
        config: the `fm` section.

    Returns:
        Names of the tensors that were drawn at random -> whether the files have one of another shape.

    """
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    drawn = {name: name in mismatched for name in sorted({*report["missing_keys"], *mismatched})}
    is_lm = fm.get_output_embeddings() is not None
    stored = "" if is_lm else f"{fm.base_model_prefix}."
    # a pooler stands between backbone and head, and models that were pre-trained without it come without it
    wrong = [name for name in drawn if name.startswith(stored) and ".pooler." not in name]
    if wrong:
        found = (
            f"{config.path!r} without {wrong[0]} of the shape that its config and fm.config = {config.config} ask for"
        )
        allowed = "weights for the whole language model" if is_lm else "weights for the whole backbone"
        raise ConfigError(f"fm.path: found {found} ({len(wrong)} tensors so), allowed: {allowed}")
    _check_no_surplus(fm, report["unexpected_keys"], config, is_lm)
    for name, parameter in fm.named_parameters():
        if not parameter.is_meta and not torch.isfinite(parameter).all():
            raise ConfigError(
                f"fm.path: found NaN or infinite values in {name} of {config.path!r}, allowed: finite weights"
            )
    return drawn


def _check_no_surplus(fm: PreTrainedModel, unexpected: Iterable[str], config: FMConfig, is_lm: bool) -> None:
    """Raise a ConfigError for stored tensors of the backbone for which the model has no place."""
    prefix, parts = f"{fm.base_model_prefix}.", {name for name, _ in fm.base_model.named_children()}
    if is_lm:
        parts |= {name for name, _ in fm.named_children()}
    cut = _layers_cut_off(fm, config.config)
    surplus = sorted(
        name
        for name in unexpected
        if (name.startswith(prefix) or name.partition(".")[0] in parts)
        and not OLD_BUFFERS.search(name)
        and not UNUSED_PARTS.search(name)
        and not (cut and cut.search(name))
    )
    if surplus:
        found = f"{config.path!r} with {surplus[0]}, for which its config leaves no place ({len(surplus)} tensors so)"
        raise ConfigError(f"fm.path: found {found}, allowed: a config.json that belongs to the weights")


def _layers_cut_off(fm: PreTrainedModel, overrides: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Return what names tensors of the layers beyond those that `fm.config` asks for; None: it asks for no number."""
    names = {"num_hidden_layers", fm.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")}
    if names.isdisjoint(overrides):
        return None
    kept, path = len(find_ffns(fm)), ffn_location(fm).layers.rpartition(".")[2]
    # a stored path may be another than the model's (ViT), its last word is the same or `layer`
    return re.compile(rf"(^|\.)({re.escape(path)}|layers?)\.(?!({'|'.join(map(str, range(kept)))})\.)\d+\.")
