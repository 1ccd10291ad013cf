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

    Moves, casts, slices, views, negations and concatenations of known masks are known masks; everything else gives
    plain tensors. `all` and `sum` over everything are answered on the CPU. A mask that torch knows to be written into,
    itself or through a view, is known no more (past `.data` and NumPy it does not know); nor is one without values, on
    the meta device, or one made in inference mode.
    """

    _host: Tensor | None = None
    _version_known: int | None = None
    """Of its memory, when it was what `_host` says."""

    @staticmethod
    def of(mask: Tensor) -> Tensor:
        """Return a mask that lies on the CPU as one that is known."""
        return _known(mask, mask.clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return a clone; torch knows no other way for a class of tensors."""
        return memo.setdefault(id(self), self.clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be written to a file as a plain mask: whoever opens it may know nothing of this class."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, with plain tensors, and let the copy on the CPU follow or answer."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            mask = args[0] if args else None
            if func is torch.cat and mask is not None:
                made, hosts = func(*args, **kwargs), [_host_of(part) for part in mask]
                known = [host for host in hosts if host is not None]
                return _known(made, func(known, *args[1:], **kwargs)) if len(known) == len(hosts) else made
            host = _host_of(mask) if func in _FOLLOWED else None
            if host is None:
                return func(*args, **kwargs)
            if func in _ANSWERS:
                return func(*args, **kwargs) if len(args) > 1 or kwargs else func(host)
            made = func(*args, **kwargs)
            if made is mask or (func is Tensor.__getitem__ and not _is_slice(args[1])):
                return made
            if func in _SAME_VALUES:
                return _known(made, host.to(made.dtype).contiguous())
            return _known(made, func(host, *args[1:], **kwargs))


_FOLLOWED = _SAME_VALUES | _SAME_ON_BOTH | _ANSWERS | {Tensor.__getitem__}


def real_tokens(attention_mask: Tensor) -> Tensor:
    """Return at which of the B * T positions of a (B, T) mask there are real tokens, ascending, on its device.

    A GPU is waited for where the CPU does not know the mask.
    """
    with torch._C.DisableTorchFunctionSubclass():
        host = _host_of(attention_mask)
        rows = (attention_mask if host is None else host).flatten().nonzero().squeeze(1)
        return rows.to(attention_mask.device, non_blocking=True)


def _host_of(mask: Any) -> Tensor | None:
    """Return a mask's values on the CPU, if they are known."""
    if not isinstance(mask, KnownMask) or mask._host is None or mask._version_known != mask._version:
        return None
    return mask._host


def _known(mask: Tensor, host: Tensor) -> Tensor:
    if mask.is_meta or mask.is_inference():
        return mask
    known = mask.as_subclass(KnownMask)
    known._host, known._version_known = host, mask._version
    return known


def _is_slice(index: Any) -> bool:
    parts: Sequence[Any] = index if isinstance(index, tuple) else (index,)
    return all(isinstance(part, slice) for part in parts)
