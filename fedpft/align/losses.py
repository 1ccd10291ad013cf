"""The two terms of the alignment loss (method.md 2). Shapes: `B` batch, `T` tokens, `H` hidden, `N` neurons."""

from torch import Tensor


def hidden_state_loss(teacher: Tensor, student: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """L1: squared error of a layer's output relative to the teacher's energy, over real tokens.

    Args:
        teacher, student: (B, T, H).
        attention_mask: (B, T), 1 for real tokens; None when every position counts.

    """
    if attention_mask is not None:
        real = attention_mask.bool()
        teacher, student = teacher[real], student[real]
    return (teacher - student).square().mean() / teacher.square().mean()


def weight_product(up: Tensor, down: Tensor) -> Tensor:
    """Return `P = W_down @ W_up`, (H, H), from `up` (N, H) and `down` (H, N); N may differ between teacher and student."""
    return down @ up


def weight_product_loss(teacher_product: Tensor, student_product: Tensor) -> Tensor:
    """L2: squared error of `P` relative to the teacher's. Differentiable, unlike in the authors' code (method.md 7.4)."""
    return (teacher_product - student_product).square().mean() / teacher_product.square().mean()
