"""The adapter: LoRA weights plus the task head, the only thing that clients train (the only importer of peft).

An adapter travels as one flat float32 vector in the order of :func:`adapter_layout`. The FM and a sub-FM have the same
layout, because compression keeps every module's name and the shapes of everything that LoRA touches; a proxy of fewer
layers has one of its own (`fedpft.plugin.adapter_order`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpft.config import ConfigError, LoraConfig
from fedpft.models.ffn import ffn_location, find_ffns
from fedpft.seeding import isolated_torch_rng

AdaptedModel = PeftModel
"""A transformers model with an attached adapter."""

AdapterLayout = tuple[tuple[str, tuple[int, ...]], ...]

LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("query", "key", "value", "attention.output.dense"),
    "roberta": ("query", "key", "value", "attention.output.dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "vit": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "gpt2": ("c_attn", "attn.c_proj"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
"""Query, key, value and attention output projections of each family (GPT-2 fuses the first three)."""


def attach_lora(
    model: PreTrainedModel, config: LoraConfig, seed: int, layers: Sequence[int] | None = None
) -> PeftModel:
    """Wrap a model with LoRA and make the adapter its only trainable part; B is zero, so outputs do not change.

    The adapter takes over the model's mode: attached to a model in eval mode, its dropout is off.

    Args:
        model: plain; it is changed.
        config: the adapter's.
        seed: of its start.
        layers: numbers of the layers that get LoRA; None: all, and targets outside the layers.

    Raises:
        ConfigError: a target that matches no module, or a family without default targets.

    """
    targets = lora_targets(model, config, layers)
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.dropout,
        target_modules=list(targets),
        layers_to_transform=None if layers is None else list(layers),
        layers_pattern=None if layers is None else ffn_location(model).layers,
        modules_to_save=head_modules(model),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    training = model.training
    with isolated_torch_rng(seed):
        return get_peft_model(model, peft_config).train(training)  # peft leaves its own dropouts active


def lora_targets(model: PreTrainedModel, config: LoraConfig, layers: Sequence[int] | None = None) -> tuple[str, ...]:
    """Return the module name suffixes that get LoRA, each checked in these layers, or without any in the whole model.

    Raises:
        ConfigError: a target that matches no module, or an FFN (whose size differs between FM and sub-FM), or a family
            without default targets.

    """
    model_type = model.config.model_type
    targets = config.target_modules or LORA_TARGETS.get(model_type, ())
    if not targets:
        raise ConfigError(f"lora.target_modules: found none, and model type {model_type!r} has no row in LORA_TARGETS")
    ffns = find_ffns(model)
    ffn_modules = {id(module) for ffn in ffns for module in (ffn.up, ffn.gate, ffn.down)}
    places, where = ([model], "module") if layers is None else ([ffns[i].layer for i in layers], "module in a layer")
    named = [item for place in places for item in place.named_modules()]
    for target in targets:
        matches = [module for name, module in named if name == target or name.endswith(f".{target}")]
        if not matches:
            found = f"{target!r}, which matches no {where} of model type {model_type!r}"
            raise ConfigError(f"lora.target_modules: found {found}")
        if any(id(module) in ffn_modules for module in matches):
            raise ConfigError(
                f"lora.target_modules: found {target!r}, which matches an FFN, allowed: attention projections"
            )
    return targets


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the task head's top-level modules: everything outside the backbone that has parameters."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and next(module.parameters(), None) is not None
    ]


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter's live parameters by name, in layout order."""
    named = ((name, parameter) for name, parameter in model.named_parameters() if _is_adapter(name))
    return dict(sorted(named))


def split_adapter(parameters: Mapping[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split adapter parameters by name into LoRA and task head."""
    lora = [parameter for name, parameter in parameters.items() if "lora_" in name]
    return lora, [parameter for name, parameter in parameters.items() if "lora_" not in name]


def adapter_layout(model: nn.Module) -> AdapterLayout:
    """Return names and shapes of the adapter's tensors, in the order of the flat vector."""
    return tuple((name, tuple(parameter.shape)) for name, parameter in adapter_parameters(model).items())


@torch.no_grad()
def get_adapter(model: nn.Module) -> np.ndarray:
    """Return a copy of the adapter as one (P,) float32 vector."""
    return torch.cat([p.detach().float().reshape(-1) for p in adapter_parameters(model).values()]).cpu().numpy()


@torch.no_grad()
def set_adapter(model: nn.Module, adapter: np.ndarray) -> None:
    """Overwrite the adapter's parameters with a flat vector (sets, never adds).

    Raises:
        ValueError: the vector's length is not that of the layout.

    """
    parameters = adapter_parameters(model)
    expected = sum(p.numel() for p in parameters.values())
    if adapter.shape != (expected,):
        raise ValueError(f"adapter: found shape {adapter.shape}, allowed: ({expected},) as laid out by the model")
    start = 0
    for parameter in parameters.values():
        values = adapter[start : start + parameter.numel()]
        parameter.copy_(torch.tensor(values).view_as(parameter))
        start += parameter.numel()


def num_base_parameters(model: nn.Module) -> int:
    """Count a model's parameters with its head, without LoRA."""
    return sum(
        p.numel() for name, p in model.named_parameters() if "lora_" not in name and "original_module" not in name
    )


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter in PEFT's own format; opens with `PeftModel.from_pretrained` on the FM or the sub-FM."""
    model.save_pretrained(str(folder))


def without_adapter(model: PeftModel) -> PreTrainedModel:
    """Remove LoRA and the tuned head from a model for good and return the plain transformers model."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([])  # else `unload` keeps the tuned head in place of the original one
    return model.unload()


def _is_adapter(name: str) -> bool:
    return "lora_" in name or "modules_to_save" in name
