"""Which modules get LoRA: a table by family, and a check of what a user names."""

from collections import Counter
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpft.config import ConfigError, LoraConfig
from fedpft.models.ffn import ffn_location, find_ffns
from fedpft.models.head import head_modules

_BERT = ("query", "key", "value", "attention.output.dense")
_PROJ = ("q_proj", "k_proj", "v_proj", "o_proj")

LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "mpnet": ("attn.q", "attn.k", "attn.v", "attn.o"),
    "modernbert": ("attn.Wqkv", "attn.Wo"),
    "electra": _BERT,
    "deberta-v2": ("query_proj", "key_proj", "value_proj", "attention.output.dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "vit": _PROJ,
    "deit": _PROJ,
    "dinov2": _PROJ,
    "gpt2": ("c_attn", "attn.c_proj"),
    "gpt_neox": ("query_key_value", "attention.dense"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "llama": _PROJ,
    "mistral": _PROJ,
    "qwen2": _PROJ,
    "qwen3": _PROJ,
    "smollm3": _PROJ,
    "granite": _PROJ,
    "phi3": ("qkv_proj", "o_proj"),
    "gemma": _PROJ,
    "gemma2": _PROJ,
    "gemma3_text": _PROJ,
    "olmo2": _PROJ,
}
"""Query, key, value and attention output projections of each family (some, as GPT-2, fuse the first three)."""

ALL_LINEAR = "all-linear"
"""The target that stands for all of a family's row and for its FFNs, as PEFT calls it."""

LINEAR = (nn.Linear, Conv1D)
"""Kinds of modules that may have LoRA."""


def lora_targets(model: PreTrainedModel, config: LoraConfig, layers: Sequence[int] | None = None) -> tuple[str, ...]:
    """Return the module name suffixes that get LoRA, each checked in these layers, or without any in the whole model.

    Raises:
        ConfigError: a target that matches no module, or one that cannot have LoRA: no linear layer, a part of the head
            (which is tuned whole), weights that two modules share (merged, LoRA would change both); or an unknown model
            family.

    """
    model_type = model.config.model_type
    ffns, location = find_ffns(model), ffn_location(model)
    in_ffns = [path for path in dict.fromkeys((location.gate, location.up, location.down)) if path is not None]
    by_name = {ALL_LINEAR: (*LORA_TARGETS[model_type], *in_ffns)}
    named_targets = config.target_modules or LORA_TARGETS[model_type]
    targets = tuple(dict.fromkeys(name for target in named_targets for name in by_name.get(target, (target,))))
    allowed = f"{ALL_LINEAR}, or linear layers outside the head, as {', '.join(by_name[ALL_LINEAR])}"
    refused = _without_lora(model)
    places, where = ([model], "module") if layers is None else ([ffns[i].layer for i in layers], "module in a layer")
    named = [item for place in places for item in place.named_modules()]
    for target in targets:
        matches = [module for name, module in named if _matches(target, name)]
        if not matches:
            found = f"{target!r}, which matches no {where} of model type {model_type!r}"
            raise ConfigError(f"lora.target_modules: found {found}, allowed: {allowed}")
        for module in matches:
            kind = refused.get(id(module)) or (None if isinstance(module, LINEAR) else f"a {type(module).__name__}")
            if kind is not None:
                raise ConfigError(f"lora.target_modules: found {target!r}, which matches {kind}, allowed: {allowed}")
    return targets


def has_lora_on_down(model: PreTrainedModel, config: LoraConfig) -> bool:
    """Whether an FFN's `down` has LoRA with this config; raises as :func:`lora_targets`."""
    targets, downs = lora_targets(model, config), {id(ffn.down) for ffn in find_ffns(model)}
    names = [name for name, module in model.named_modules() if id(module) in downs]
    return any(_matches(target, name) for target in targets for name in names)


def _matches(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _without_lora(model: PreTrainedModel) -> dict[int, str]:
    """Return the modules, by their `id`, that cannot have LoRA although they might be linear, and what they are."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    shared = [m for m in model.modules() if any(owners[id(p)] > 1 for p in m.parameters(recurse=False))]
    in_head = [module for name in head_modules(model) for module in model.get_submodule(name).modules()]
    kinds = {"weights that another module shares": shared, "a part of the head": in_head}
    return {id(module): kind for kind, modules in kinds.items() for module in modules}
