"""What is refused of an FM, each in one line: its family, the fields set in its config, its weights."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fedpft.config import ConfigError, FMConfig
from fedpft.models.ffn import FFN_LOCATIONS

DECODERS = sorted(
    FFN_LOCATIONS.keys() & MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
)
"""Families that predict the next token. Encoders that transformers can run so too (bert) learned to fill in masks."""

UNDECLARED_FIELDS = {
    "deberta-v2": ("position_buckets", "norm_rel_ebd", "share_att_key", "conv_kernel_size", "conv_act")
}
"""Fields of a family's config.json that its models read, although the config class does not declare them."""


def check_decoder(model_type: str, path: str) -> None:
    """Raise a ConfigError unless the family is one of decoders."""
    if model_type not in DECODERS:
        raise ConfigError(
            f"fm.path: found {path!r} of model type {model_type!r}, allowed for a task of kind causal_lm: a decoder, "
            f"{', '.join(DECODERS)}"
        )


def check_fields(known: PretrainedConfig, overrides: Mapping[str, Any]) -> None:
    """Raise a ConfigError for the first field that a transformers config does not have."""
    names = {*known.to_dict(), *UNDECLARED_FIELDS.get(known.model_type, ())}
    for key in overrides:
        if key not in names:
            close = difflib.get_close_matches(key, sorted(names), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"fm.config.{key}: unknown field of a {known.model_type} config{hint}")


def check_weights(fm: PreTrainedModel, report: Mapping[str, Any], config: FMConfig) -> None:
    """Refuse an FM that is not wholly the stored one, or not finite.

    Only the head of a classifier may start from random weights: clients tune it. A language model's is never tuned.

    Args:
        fm: just loaded.
        report: transformers' on its loading.
        config: the `fm` section.

    """
    fresh = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    stored = "" if fm.get_output_embeddings() is not None else f"{fm.base_model_prefix}."
    # a pooler stands between backbone and head, and models that were pre-trained without it come without it
    wrong = sorted(name for name in fresh if name.startswith(stored) and ".pooler." not in name)
    if wrong:
        found = (
            f"{config.path!r} without {wrong[0]} of the shape that its config and fm.config = {config.config} ask for"
        )
        allowed = "weights for the whole backbone" if stored else "weights for the whole language model"
        raise ConfigError(f"fm.path: found {found} ({len(wrong)} tensors so), allowed: {allowed}")
    for name, parameter in fm.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ConfigError(
                f"fm.path: found NaN or infinite values in {name} of {config.path!r}, allowed: finite weights"
            )
