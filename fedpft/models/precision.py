"""Frozen weights in bfloat16, and what stays float32 beside them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedpft.config import FMConfig
from fedpft.models.ffn import find_backbone
from fedpft.models.head import head_modules


def torch_dtype(config: FMConfig) -> torch.dtype:
    """Return `fm.dtype` as torch's."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]


def head_in_float32(model: PreTrainedModel) -> None:
    """Make a model's task head float32, in place, and let it take states of the backbone's type.

    Clients tune it, and in bfloat16 a small step is lost. Nothing happens where it is float32.
    """
    for name in head_modules(model):
        module = model.get_submodule(name)
        if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
            module.float()
        if find_backbone(model).dtype != torch.float32 and _to_float32 not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_to_float32, with_kwargs=True)


def head_as_backbone(model: PreTrainedModel) -> None:
    """Undo :func:`head_in_float32`, in place: an untuned head loses nothing, and its files are of one type."""
    for name in head_modules(model):
        module = model.get_submodule(name)
        module.to(find_backbone(model).dtype)
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _to_float32]:
            del module._forward_pre_hooks[key], module._forward_pre_hooks_with_kwargs[key]


@contextmanager
def in_float32(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let parameters be float32 within the block; at its end they are rounded to what they were."""
    dtypes = [parameter.dtype for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in zip(parameters, dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)


def _to_float32(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_as_float32, args)), {name: _as_float32(value) for name, value in kwargs.items()}


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
