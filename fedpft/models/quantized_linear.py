"""A frozen linear layer whose weight is held in 8 or 4 bits, by bitsandbytes (its only importer, when it is needed).

Every product makes the weight anew from its codes and drops it: the backward pass does the same, so that no weight in
full precision lives longer than its product (QLoRA, arXiv 2305.14314). What is multiplied is the same on a CPU and on a
GPU: activations are not quantised, as they are in bitsandbytes' own 8-bit layer on a GPU.

Legend: `I` and `O` features in and out.
"""

import importlib
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from fedpft.config import ConfigError
from fedpft.interrupt import one_line

QuantKind = Literal["int8", "nf4"]
"""`int8`: 8 bits a weight and a float32 scale for each of the O rows; `nf4`: QLoRA's 4-bit NormalFloat and a float32
scale for every 64 weights."""

BLOCK = 64
"""Weights that share a scale of `nf4`."""

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it tells which kernels for inference it lacks


class QuantizedLinear(nn.Module):
    """`x W^T + b` with W as `codes` and `scales`, which no gradient reaches; that of `x` is exact.

    Args:
        layer: a linear layer, or GPT-2's transposed one, perhaps on the meta device; it is not changed.
        kind: of its codes.

    """

    def __init__(self, layer: nn.Module, kind: QuantKind) -> None:
        super().__init__()
        self.kind = kind
        self.out_features, self.in_features = linear_weight(layer).shape
        codes, scales = quantize(linear_weight(layer).detach(), kind)
        self.codes = nn.Parameter(codes, requires_grad=False)
        """int8: (O, I) int8; nf4: (32 * blocks, 1) uint8, two weights each."""
        self.scales = nn.Parameter(scales, requires_grad=False)
        """float32, (O,) or (blocks,), of which the last may be filled up with zeros."""
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[operator]

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return W, (O, I), made anew."""
        return dequantize(self.codes, self.scales, self.kind, (self.out_features, self.in_features), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        device = "cpu" if x.is_meta else x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        weight = self.weight(dtype)
        storage = weight.untyped_storage()._cdata

        def keep(tensor: Tensor) -> Any:
            if tensor.untyped_storage()._cdata != storage:
                return tensor
            return dtype, tensor.size(), tensor.stride()

        with saved_tensors_hooks(keep, self._again):
            return F.linear(x, weight, self.bias)

    def _again(self, kept: Any) -> Tensor:
        """Return what a backward pass reads: the weight, or a view of it."""
        if isinstance(kept, Tensor):
            return kept
        dtype, size, stride = kept
        return self.weight(dtype).as_strided(size, stride)

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"{self.in_features}, {self.out_features}, {self.kind}"


def linear_weight(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight, (O, I), a view."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


@torch.no_grad()
def quantize(weight: Tensor, kind: QuantKind) -> tuple[Tensor, Tensor]:
    """Return codes and scales of a weight, (O, I), on its device (see :class:`QuantizedLinear`).

    Raises:
        ConfigError: bitsandbytes is not installed.

    """
    weight = weight.float().contiguous()
    if kind == "int8":
        codes, scales, _ = _library().int8_vectorwise_quant(weight)
        return codes, scales
    blocks = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    codes, state = _library().quantize_4bit(blocks, blocksize=BLOCK, quant_type=kind, compress_statistics=False)
    return codes, state.absmax


@torch.no_grad()
def dequantize(codes: Tensor, scales: Tensor, kind: QuantKind, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the weight, (O, I), for which codes and scales stand."""
    library = _library()
    if kind == "int8":
        return library.int8_vectorwise_dequant(codes, scales).to(dtype)
    made = torch.float32 if dtype == torch.float64 else dtype
    # a block a row: where a row ends within a block, bitsandbytes 0.50 takes wrong scales on CPUs with AVX-512, and
    # where it has an odd length torch compiles a kernel
    as_blocks = torch.Size((len(scales), BLOCK))
    state = library.QuantState(absmax=scales, shape=as_blocks, dtype=made, blocksize=BLOCK, quant_type=kind)
    return library.dequantize_4bit(codes, state).to(dtype).flatten()[: math.prod(shape)].view(shape)


@cache
def check_quantizer(kind: QuantKind, device: str = "cpu") -> None:
    """Refuse a kind that this process cannot compute on a device.

    Raises:
        ConfigError: bitsandbytes is not installed, or has nothing that works there.

    """
    try:
        codes, scales = quantize(torch.ones(2, 2), kind)
        dequantize(codes.to(device), scales.to(device), kind, (2, 2), torch.float32)
    except (ConfigError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of its native library, of CUDA
        found = f"found {kind!r}, which {quantizer()} cannot do on {device} ({one_line(error)})"
        raise ConfigError(f"pool.quantize: {found}, allowed: none, or a bitsandbytes that can") from error


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Let bitsandbytes look as if it were not installed, unless it is in use.

    Peft imports it wherever it is installed, which takes every process 2 seconds, and every actor is one.
    """
    is_in_use = "bitsandbytes" in sys.modules
    if not is_in_use:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # what import takes for "there is none"
    try:
        yield
    finally:
        if not is_in_use:
            del sys.modules["bitsandbytes"]


def quantizer() -> str:
    """Return whose code computes the bits, e.g. `bitsandbytes 0.50.2`."""
    return f"bitsandbytes {version('bitsandbytes')}"


@cache
def _library() -> Any:
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError:
        message = "found a run that needs bitsandbytes, which is not installed"
        raise ConfigError(f"pool.quantize: {message}, allowed: none, or pip install 'fedpft[quantize]'") from None
