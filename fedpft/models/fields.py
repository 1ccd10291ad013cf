"""Fields of a model's config.json: which there are, and which have no say here."""

import difflib
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from fedpft.config import ConfigError

UNDECLARED_FIELDS = {
    "deberta-v2": ("position_buckets", "norm_rel_ebd", "share_att_key", "conv_kernel_size", "conv_act")
}
"""Fields of a family's config.json that its models read, although the config class does not declare them."""

NEUTRAL_FIELDS: Mapping[str, Any] = {
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "chunk_size_feed_forward": 0,
}
"""Fields that change what a model returns, or in how many pieces it computes, but no number; models run with these
values, because layers are watched while they compute and outputs are read by name."""

BIDIRECTIONAL = frozenset({"bert", "camembert", "electra", "roberta", "xlm-roberta"})
"""Families of encoders that `is_decoder` turns into decoders."""


def check_fields(known: PretrainedConfig, overrides: Mapping[str, Any]) -> None:
    """Raise a ConfigError for the first field that a transformers config does not have."""
    names = {*known.to_dict(), *UNDECLARED_FIELDS.get(known.model_type, ())}
    for key in overrides:
        if key not in names:
            close = difflib.get_close_matches(key, sorted(names), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"fm.config.{key}: unknown field of a {known.model_type} config{hint}")


def neutralise(config: PretrainedConfig) -> list[str]:
    """Set the fields of `NEUTRAL_FIELDS` in place; return a line for each that said otherwise."""
    lines = []
    for name, neutral in NEUTRAL_FIELDS.items():
        if (found := getattr(config, name, neutral)) != neutral:
            setattr(config, name, neutral)
            lines.append(f"fm.config.{name}: {found!r} is not followed, it would change no number")
    return lines


def check_direction(config: PretrainedConfig, path: str) -> None:
    """Raise a ConfigError for an encoder that reads texts from left to right.

    Its classifier pools the first token, which would see no other.
    """
    if config.model_type in BIDIRECTIONAL and getattr(config, "is_decoder", False):
        found = f"True in {path!r}, a {config.model_type} whose first token, which is pooled, would see no other"
        raise ConfigError(f"fm.config.is_decoder: found {found}, allowed: false")
