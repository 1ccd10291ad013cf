"""Linear layers of several clients side by side: each client's rows meet its own weight.

Legend: `K` clients, `R` rows of each, `I` and `O` features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, exact: bool) -> Tensor:
    """Return `x_k W_k^T + b_k` for every client k.

    Args:
        x: (K * R / ..., ..., I), a client's rows together.
        weight: (K, O, I).
        bias: (K, O) or None.
        exact: whether each client must get the bits that it gets alone, gradients included.

    """
    clients = x.reshape(len(weight), -1, x.shape[-1])
    if not exact:
        product = torch.bmm(clients, weight.mT)
        result = product if bias is None else product + bias[:, None]
    elif bias is None and not is_small(clients.shape[1], x.shape[-1], weight.shape[1]):
        result = _Products.apply(clients, weight)
    else:
        biases = [None] * len(weight) if bias is None else bias.unbind()
        products = zip(clients.unbind(), weight.unbind(), biases, strict=True)
        result = torch.stack([alone(lambda rows, w=w, b=b: F.linear(rows, w, b), rows) for rows, w, b in products])
    return result.reshape(*x.shape[:-1], -1)


MIN_ROWS = 8
"""Of a matrix product. With fewer (1 to 5, by processor and number of threads), MKL rounds otherwise than with more."""

MIN_PRODUCT = 400
"""Multiplications of a matrix in a batched product; below that torch computes it by a loop of its own."""

LINE = 16
"""In float32 numbers, 64 bytes: a matrix that does not begin at a multiple of that may be added up in another order."""


def is_small(rows: int, inputs: int, outputs: int) -> bool:
    """Whether a client's batched product comes out otherwise than its product alone."""
    return is_few(rows, inputs, outputs) or rows * inputs * outputs < MIN_PRODUCT


def is_few(rows: int, inputs: int, outputs: int) -> bool:
    """Whether a client's rows come out otherwise when others' go through the same product."""
    return rows < MIN_ROWS or rows * inputs % LINE > 0 or rows * outputs % LINE > 0


def alone(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a function on memory of its own, as it has it where there is one client; the same in the backward pass."""
    return _OwnMemory.apply(function(*(_OwnMemory.apply(tensor) for tensor in inputs)))


class _OwnMemory(torch.autograd.Function):
    """A copy, laid out alike (also where it is a part of a larger one), whose gradient is a copy, too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        if tensor.is_contiguous() or 0 in tensor.stride():
            return tensor.clone()
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(
            tensor
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


class _Products(torch.autograd.Function):
    """`x_k W_k^T`; the products of the backward pass are those that autograd takes for a single client's.

    Autograd's own for `bmm` is the transpose of `x^T g` instead of `g^T x`, which adds up in another order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None
        return of_x, torch.bmm(gradient.mT, x) if ctx.needs_input_grad[1] else None
