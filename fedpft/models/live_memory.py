"""How much memory code would hold, found by running it on tensors that have shapes and no values (the meta device).

    with live_memory(fm, sub_fm) as memory:
        evaluate(fm, ...)                      # the run's own code, unchanged
    memory.peak_bytes                          # of the two models and all that came on top

Two modes of torch do it. One reads every device that is named as the meta device and answers where code asks for a
value, so that a run's phases go through; the other counts storages, each from its making until its last tensor is gone.
What is not moved to a device, or is read from there (`.cpu()`), exists and counts nothing; nor does what was made
before and is not named, such as a packed model's skeleton. Not seen is what kernels take for themselves, what an
allocator rounds up, and what `foreach` optimisers of a GPU hold for a moment. Sizes that depend on values are the
largest that they can be: every token is real, every example a target.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fedpft.models.recompute import recomputing_within

DeviceKind = Literal["cpu", "cuda"]
"""Whose kernels and autocast are meant."""

_aten = torch.ops.aten
_META = torch.device("meta")
_PRODUCTS = frozenset(
    {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d", "conv2d"}
)
"""What autocast does in low precision, by the functions' names."""
_IN_FLOAT32 = frozenset({"softmax", "log_softmax", "layer_norm", "group_norm", "cross_entropy", "nll_loss", "mse_loss"})
"""What a GPU's autocast does in float32."""


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of meta storages that live at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        """The most that lived at once."""
        self._known: set[int] = set()

    def hold(self, *models: nn.Module) -> None:
        """Count parameters and buffers that were made before."""
        for model in models:
            self._count([*model.parameters(), *model.buffers()])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ANSWERS and args[0].is_meta:
            result = _ANSWERS[func](*args, **kwargs)
        else:
            result = func(*_without_truths(func, args), **kwargs)
        if not any(returned.alias_info for returned in func._schema.returns):  # a view of what is there makes nothing
            self._count(tree_leaves(result))
        return result

    def _count(self, values: Sequence[Any]) -> None:
        for tensor in values:
            if not isinstance(tensor, Tensor) or not tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.live_bytes += size
                weakref.finalize(storage, self._forget, key, size)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size


@contextmanager
def live_memory(*models: nn.Module, device: DeviceKind = "cpu") -> Iterator[LiveMemory]:
    """Run the block on the meta device and count what it would hold on a device of this kind, these models included.

    Args:
        models: on the meta device, each of whose tensors counts once.
        device: where the block is meant to run; it itself is told to run on the CPU.

    """
    memory = LiveMemory()
    memory.hold(*models)
    mode = _ShapesAlone(device)
    with recomputing_within(mode), memory, mode:
        yield memory


class _ShapesAlone(TorchFunctionMode):
    """Places everything that is moved, or made on a device, on the meta device; answers what asks for values."""

    def __init__(self, device: DeviceKind) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, args, kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = _META
        name = getattr(func, "__name__", "")
        if (name in _PRODUCTS or name in _IN_FLOAT32) and torch.is_autocast_enabled("cpu"):
            args, kwargs = self._cast(name, args, kwargs)
        return func(*args, **kwargs)

    def _cast(self, name: str, args: Any, kwargs: Any) -> Any:
        if name in _PRODUCTS:
            before, after = torch.float32, torch.get_autocast_dtype("cpu")
        else:
            before, after = torch.get_autocast_dtype("cpu"), torch.float32
            if self._device == "cpu":
                return args, kwargs
        return tree_map(
            lambda leaf: leaf.to(after) if isinstance(leaf, Tensor) and leaf.dtype == before else leaf, (args, kwargs)
        )

    def to(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        if rest and isinstance(rest[0], Tensor):
            rest[0:1] = [rest[0].device, rest[0].dtype]
        copy = kwargs.pop("copy", False)
        device, dtype, *_ = torch._C._nn._parse_to(*rest, **kwargs)
        return func(tensor, device=tensor.device if device is None else _META, dtype=dtype or tensor.dtype, copy=copy)

    def cpu(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

    def numpy(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not args[0].is_meta:
            return func(*args, **kwargs)
        return np.zeros(tuple(args[0].shape), dtype=torch.empty(0, dtype=args[0].dtype).numpy().dtype)

    def tolist(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self.numpy(func, args, kwargs).tolist() if args[0].is_meta else func(*args, **kwargs)

    def attention(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._attention(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attend as a fused kernel does, which keeps no (T, T) matrix; a CPU has none with dropout."""
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if not query.is_meta or (dropout_p and self._device == "cpu"):
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], dim=-3) for each in (key, value))
        mask = None if attn_mask is None else attn_mask.to(query.dtype)
        output, _ = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale
        )
        return output


_HANDLERS: dict[Any, Callable[..., Any]] = {
    Tensor.to: _ShapesAlone.to,
    Tensor.cpu: _ShapesAlone.cpu,
    Tensor.numpy: _ShapesAlone.numpy,
    Tensor.__array__: _ShapesAlone.numpy,
    Tensor.tolist: _ShapesAlone.tolist,
    functional.scaled_dot_product_attention: _ShapesAlone.attention,
}


def _one(tensor: Tensor) -> Any:
    """Return a number for a tensor of one; False of truth values: a mask has padding."""
    return False if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


def _places(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.numel(), tensor.dim(), dtype=torch.int64, device=_META)


_ANSWERS: dict[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense.default: _one,
    _aten.nonzero.default: _places,
    _aten.equal.default: lambda first, second: True,
    _aten.masked_select.default: lambda tensor, mask: torch.empty(tensor.numel(), dtype=tensor.dtype, device=_META),
    _aten._unique2.default: lambda tensor, *_, **__: (tensor.new_empty(1), *tensor.new_empty(2, 0).unbind()),
    _aten.bincount.default: lambda tensor, weights=None, minlength=0: torch.empty(
        minlength, dtype=torch.int64, device=_META
    ),
}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}


def _without_truths(func: Any, args: Any) -> Any:
    """Return the arguments of an operation with places instead of truth values as indices."""
    if func not in _INDEXING or not args[0].is_meta:
        return args
    indices: list[Any] = []
    for index in args[1]:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            indices += _places(index).unbind(1)
        else:
            indices.append(index)
    return (args[0], indices, *args[2:])
