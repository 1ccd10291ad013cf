"""The families of models that are known: where each keeps its feed-forward networks (FFNs).

A new family is a row of :data:`FFN_LOCATIONS`, not code, and one of `LORA_TARGETS` (`fedpft.models.lora_targets`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import CONFIG_MAPPING

from fedpft.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class FFNLocation:
    """Module paths of one family: `layers` from the backbone, the others from a layer."""

    layers: str
    up: str
    down: str
    gate: str | None = None
    """Gated FFNs only: `h = act(gate(x)) * up(x)`. The same path as `up`: one projection, whose first half of rows is
    the gate."""
    output_norm: str | None = None
    """The norm between `down` and the residual stream, where there is one."""
    output_scale: str | None = None
    """What `down`'s output (or its norm) is multiplied with before the residual is added: a tensor (H,) or a number."""
    closing_norm: str | None = None
    """Post-LN families only: the LayerNorm that closes the FFN."""
    dropout: str | None = None
    """Dropout at the FFN's output; None where there is none of its own (ViT, DeiT and OPT share one with attention)."""
    between_layers: str | None = None
    """From the backbone: what some models compute between two layers; None in the model: it does not."""
    size_field: str | None = "intermediate_size"
    """Field of the transformers config that holds N; None: it follows from others, and a sub-FM's are `ffn_sizes`."""
    variant: "tuple[str, FFNLocation] | None" = None
    """Field of the transformers config, and the row of those models in which it is true."""


_BERT = FFNLocation(
    layers="encoder.layer",
    up="intermediate.dense",
    down="output.dense",
    closing_norm="output.LayerNorm",
    dropout="output.dropout",
)
_VIT = FFNLocation(layers="layers", up="mlp.fc1", down="mlp.fc2")
_LLAMA = FFNLocation(layers="layers", up="mlp.up_proj", gate="mlp.gate_proj", down="mlp.down_proj")
_GEMMA2 = replace(_LLAMA, output_norm="post_feedforward_layernorm")
_OPT = FFNLocation(layers="decoder.layers", up="fc1", down="fc2", size_field="ffn_dim")
_DINOV2 = FFNLocation(
    layers="encoder.layer", up="mlp.fc1", down="mlp.fc2", output_scale="layer_scale2.lambda1", size_field=None
)
_SWIGLU = replace(_DINOV2, up="mlp.up_proj", gate="mlp.gate_proj", down="mlp.down_proj")

FFN_LOCATIONS: dict[str, FFNLocation] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "mpnet": _BERT,
    "electra": _BERT,
    "deberta-v2": replace(_BERT, between_layers="encoder.conv"),
    "distilbert": FFNLocation(
        layers="transformer.layer",
        up="ffn.lin1",
        down="ffn.lin2",
        closing_norm="output_layer_norm",
        dropout="ffn.dropout",
        size_field="hidden_dim",
    ),
    "modernbert": FFNLocation(layers="layers", up="mlp.Wi", gate="mlp.Wi", down="mlp.Wo"),
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": replace(_DINOV2, variant=("use_swiglu_ffn", _SWIGLU)),
    "gpt2": FFNLocation(layers="h", up="mlp.c_fc", down="mlp.c_proj", dropout="mlp.dropout", size_field="n_inner"),
    "gpt_neox": FFNLocation(
        layers="layers", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", dropout="post_mlp_dropout"
    ),
    "opt": replace(_OPT, closing_norm="final_layer_norm", variant=("do_layer_norm_before", _OPT)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "granite": replace(_LLAMA, output_scale="residual_multiplier"),
    "phi3": FFNLocation(
        layers="layers",
        up="mlp.gate_up_proj",
        gate="mlp.gate_up_proj",
        down="mlp.down_proj",
        dropout="resid_mlp_dropout",
    ),
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "olmo2": _GEMMA2,
}


def known_family(model_type: str, origin: str) -> FFNLocation:
    """Return the table row of a family.

    Args:
        model_type: as transformers' configs name it.
        origin: what has it, for the error.

    Raises:
        ConfigError: the family has no row; the message names the known ones and this file, or why it cannot have one.

    """
    if model_type not in FFN_LOCATIONS:
        found, allowed = f"{origin} of model type {model_type!r}", ", ".join(sorted(FFN_LOCATIONS))
        if (reason := _without_row(model_type)) is not None:
            raise ConfigError(f"fm.path: found {found}, {reason}, allowed: {allowed}")
        raise ConfigError(
            f"fm.path: found {found}, allowed: {allowed} "
            "(a new one is a row in FFN_LOCATIONS of fedpft/models/families.py "
            "and one in LORA_TARGETS of lora_targets.py beside it)"
        )
    return FFN_LOCATIONS[model_type]


def _without_row(model_type: str) -> str | None:
    """Return why models of a type can have no row; None: nothing is known against it."""
    if model_type not in CONFIG_MAPPING:
        return None
    fields = CONFIG_MAPPING[model_type]().to_dict()
    if any("expert" in name for name in _names(fields)):
        return "a mixture of experts: a router picks the FFNs of each token, so that a layer has no one FFN to compress"
    if fields.get("is_encoder_decoder"):
        return "an encoder with a decoder: a sub-FM has one stack of layers, each with the FM's layer before it"
    return None


def _names(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a config's fields, with those of the configs in it."""
    for name, value in fields.items():
        yield str(name)  # of labels they are numbers
        if isinstance(value, dict):
            yield from _names(value)
