"""The two terms of the alignment loss. Shapes: `B` batch, `T` tokens, `H` hidden, `N` neurons."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedpft.attention_mask import real_tokens


def hidden_state_loss(teacher: Tensor, student: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """L1: squared error of a layer's output relative to the teacher's energy, over real tokens.

    Args:
        teacher, student: (B, T, H), or already (tokens, H) of the real ones.
        attention_mask: (B, T), 1 for real tokens; None when every position counts.

    """
    if attention_mask is not None:
        rows = real_tokens(attention_mask)
        teacher, student = at_tokens(teacher, rows), at_tokens(student, rows)
    return (teacher - student).square().mean() / teacher.square().mean()


def at_tokens(hidden: Tensor, rows: Tensor) -> Tensor:
    """Return the chosen tokens' states, (tokens, H) of (B, T, H), on their device."""
    return hidden.flatten(0, -2).index_select(0, rows.to(hidden.device))


def mean_loss(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean of scalars, of layers that may lie on several devices, on the first one's."""
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def weight_product(up: Tensor, down: Tensor) -> Tensor:
    """Return `P = W_down @ W_up`, (H, H), of `up` (N, H) and `down` (H, N); teacher and student may differ in N."""
    return down @ up


def weight_product_loss(teacher_product: Tensor, student_product: Tensor) -> Tensor:
    """L2: squared error of `P` relative to the teacher's; it has a gradient (README, difference 4)."""
    return (teacher_product - student_product).square().mean() / teacher_product.square().mean()
