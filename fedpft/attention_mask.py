"""An attention mask of which the CPU knows what it says, wherever it lies.

In every forward pass transformers asks whether a batch has padding, to choose a faster kernel where it has none, and
whoever drops padding asks how many tokens are left. Asked of a GPU, either question makes the CPU wait until all work
given so far is done. But a mask is made on the CPU: so it keeps those values, and answers from them. All that is
computed with it goes on being computed on its device, with the same bits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SAME_VALUES = {
    Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.pin_memory, Tensor.clone, Tensor.detach, Tensor.contiguous,
    Tensor.bool, Tensor.int, Tensor.long, Tensor.float,
}  # fmt: skip
_SAME_ON_BOTH = {Tensor.__invert__, Tensor.view, Tensor.reshape}
_ANSWERS = {Tensor.all, Tensor.sum, torch.all, torch.sum}
"""Over all of a mask: what transformers decides by."""


class KnownMask(Tensor):
    """A (B, T) mask, 1 for real tokens, with a copy on the CPU.

    Moves, casts, slices, views, negations and concatenations of known masks are known masks, whose :attr:`host`
    follows; everything else gives plain tensors. `all` and `sum` over everything are answered on the CPU.
    """

    host: Tensor | None = None
    """Its values on the CPU, (B, T); None once it was written into."""

    @staticmethod
    def of(mask: Tensor) -> "KnownMask":
        """Return a mask that lies on the CPU as one that is known."""
        return _known(mask, mask.clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> "KnownMask":
        """Return a clone; torch knows no other way for a class of tensors."""
        return memo.setdefault(id(self), self.clone())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, with plain tensors, and let the copy on the CPU follow or answer."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            host = args[0].host if args and isinstance(args[0], KnownMask) else None
            if host is not None and func in _ANSWERS and len(args) == 1 and not kwargs:
                return func(host)
            made = func(*args, **kwargs)
            if func is torch.cat:
                hosts = [getattr(part, "host", None) for part in args[0]]
                known = [host for host in hosts if host is not None]
                return _known(made, torch.cat(known, *args[1:], **kwargs)) if len(known) == len(hosts) else made
            if _writes(func) and host is not None:
                args[0].host = None
            if host is None or made is args[0]:
                return made
            if func in _SAME_VALUES:
                return _known(made, host.to(made.dtype))
            if func in _SAME_ON_BOTH or (func is Tensor.__getitem__ and _is_slice(args[1])):
                return _known(made, func(host, *args[1:]))
            return made


def real_tokens(attention_mask: Tensor) -> Tensor:
    """Return at which of the B * T positions of a (B, T) mask there are real tokens, ascending, on its device.

    A GPU is waited for where the CPU does not know the mask.
    """
    host = getattr(attention_mask, "host", None)
    rows = (attention_mask if host is None else host).flatten().nonzero().squeeze(1)
    return rows.to(attention_mask.device, non_blocking=True)


def _known(mask: Tensor, host: Tensor) -> KnownMask:
    known = mask.as_subclass(KnownMask)
    known.host = host
    return known


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _is_slice(index: Any) -> bool:
    parts: Sequence[Any] = index if isinstance(index, tuple) else (index,)
    return all(isinstance(part, slice) for part in parts)
