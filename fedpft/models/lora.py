"""The adapter: LoRA weights plus the task head, the only thing that clients train (the only importer of peft).

A language model has no task head: its adapter is LoRA alone.

An adapter travels as one flat float32 vector in the order of :func:`adapter_layout`. The FM and a sub-FM have the same
layout unless LoRA is on FFNs, because compression keeps every module's name and all shapes but those. With LoRA on FFNs
and of fewer layers a proxy has a layout of its own (`fedpft.methods.plugin.adapter_order`).
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedpft.config import ConfigError, LoraConfig
from fedpft.devices import is_spread
from fedpft.models.ffn import ffn_location
from fedpft.models.head import head_modules
from fedpft.models.lora_targets import lora_targets
from fedpft.models.precision import head_as_backbone, head_in_float32
from fedpft.models.quantized_linear import without_bitsandbytes
from fedpft.models.spread import follow_weights
from fedpft.seeding import isolated_torch_rng

with without_bitsandbytes():
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftModel, get_peft_model
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict, load_peft_weights

AdaptedModel = PeftModel
"""A transformers model with an attached adapter."""

AdapterLayout = tuple[tuple[str, tuple[int, ...]], ...]

Factors = Literal["all", "A", "B"]
"""Which of LoRA's two factors clients tune; the head is tuned with either."""


def attach_lora(
    model: PreTrainedModel, config: LoraConfig, seed: int, layers: Sequence[int] | None = None
) -> PeftModel:
    """Wrap a model with LoRA and make the adapter its only trainable part; B is zero, so outputs do not change.

    The adapter, the head included, is float32 whatever the model's weights are. It takes over the model's mode:
    attached to a model in eval mode, its dropout is off.

    Args:
        model: plain; it is changed.
        config: the adapter's.
        seed: of its start.
        layers: numbers of the layers that get LoRA; None: all, and targets outside the layers.

    Raises:
        ConfigError: a target that matches no module, or an unknown model family.

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
        task_type="CAUSAL_LM" if model.get_output_embeddings() is not None else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    head_in_float32(model)
    training = model.training
    with isolated_torch_rng(seed), _plain_layers():
        adapted = get_peft_model(model, peft_config).train(training)  # peft leaves its own dropouts active
    if is_spread(adapted):
        follow_weights(adapted)
    return adapted


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter's live parameters by name, in layout order."""
    named = ((name, parameter) for name, parameter in model.named_parameters() if _is_adapter(name))
    return dict(sorted(named))


def split_adapter(parameters: Mapping[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split adapter parameters by name into LoRA and task head."""
    lora = [parameter for name, parameter in parameters.items() if "lora_" in name]
    return lora, [parameter for name, parameter in parameters.items() if "lora_" not in name]


def is_tuned(name: str, factors: Factors) -> bool:
    """Whether a tensor of the adapter, by its name, is tuned: one of these factors, or the head's."""
    return factors == "all" or "lora_" not in name or f"lora_{factors}." in name


def tuned_mask(layout: AdapterLayout, factors: Factors) -> np.ndarray:
    """Return which numbers of the flat vector are tuned, (P,) bool."""
    return np.concatenate([np.full(math.prod(shape), is_tuned(name, factors)) for name, shape in layout])


def rank_mask(layout: AdapterLayout, rank: int) -> np.ndarray:
    """Return which numbers of the flat vector are the head's, or of the first rows of A and columns of B, (P,) bool."""
    parts = []
    for name, shape in layout:
        kept = np.ones(shape, dtype=bool)
        if "lora_A." in name:
            kept[rank:] = False
        elif "lora_B." in name:
            kept[:, rank:] = False
        parts.append(kept.ravel())
    return np.concatenate(parts)


def adapter_layout(model: nn.Module) -> AdapterLayout:
    """Return names and shapes of the adapter's tensors, in the order of the flat vector."""
    return tuple((name, tuple(parameter.shape)) for name, parameter in adapter_parameters(model).items())


def head_mask(layout: AdapterLayout) -> np.ndarray:
    """Return which numbers of the flat vector are the task head's, (P,) bool."""
    parts = (np.full(math.prod(shape), "lora_" not in name) for name, shape in layout)
    return np.concatenate([np.zeros(0, dtype=bool), *parts])


@torch.no_grad()
def get_adapter(model: nn.Module) -> np.ndarray:
    """Return a copy of the adapter as one (P,) float32 vector."""
    parts = [parameter.detach().float().reshape(-1) for parameter in adapter_parameters(model).values()]
    return torch.cat([part.to(parts[0].device) for part in parts]).cpu().numpy()


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


def save_adapter(model: PeftModel, folder: Path, *, empty: bool = False) -> None:
    """Write the adapter in PEFT's own format; opens with `PeftModel.from_pretrained` on the FM or the sub-FM.

    Beside it lies the model's config, for the number of labels and their names.

    Args:
        model: any that carries it.
        folder: new, or one to write over.
        empty: zeros instead of its values, of a model on the meta device.

    """
    values = {n: torch.zeros(p.shape) for n, p in adapter_parameters(model).items()} if empty else None
    # "auto" would ask the hub what the FM's embeddings were
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=values)
    model.config.save_pretrained(folder)  # of the FM; PEFT's own is `peft_config`


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Attach an adapter that :func:`save_adapter` wrote, tensor by tensor; in eval mode.

    Raises:
        ConfigError: it cannot be read, or is not one for this model.

    """
    head_in_float32(model)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            _plain_layers(),
        ):  # of tensors that do not fit: they are an error below
            adapted = PeftModel.from_pretrained(model, str(folder))
        stored = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # peft, safetensors, json and the system each have their own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"adapter: found {str(folder)!r}, allowed: one for this FM; {reason}") from error
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    different = sorted(
        {name for name in wanted.keys() | stored.keys() if name not in wanted or name not in stored}
        | {name for name in wanted.keys() & stored.keys() if not torch.equal(wanted[name].cpu(), stored[name])}
    )
    if different:
        found = f"{str(folder)!r}, in which {different[0]} is not the FM's ({len(different)} tensors so)"
        raise ConfigError(f"adapter: found {found}, allowed: one for this FM")
    return adapted.eval()


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Fold LoRA into the weights for good and return the plain transformers model, with the tuned head."""
    merged: Any = model.merge_and_unload()
    return merged


def without_adapter(model: PeftModel) -> PreTrainedModel:
    """Remove LoRA and the tuned head from a model for good and return the plain transformers model."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([])  # else `unload` keeps the tuned head in place of the original one
    plain = model.unload()
    head_as_backbone(plain)
    return plain


@contextmanager
def _plain_layers() -> Iterator[None]:
    """Let peft wrap layers without a look at bitsandbytes, of whose layers none is here; peft forgets it again."""
    with without_bitsandbytes():
        try:
            _forget_bitsandbytes()
            yield
        finally:
            _forget_bitsandbytes()


def _forget_bitsandbytes() -> None:
    for found in (is_bnb_available, is_bnb_4bit_available):
        found.cache_clear()


def _is_adapter(name: str) -> bool:
    return "lora_" in name or "modules_to_save" in name
