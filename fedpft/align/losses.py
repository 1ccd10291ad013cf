"""The two terms of the alignment loss. Shapes: `B` batch, `T` tokens, `H` hidden, `N` neurons."""

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
    """Return `P = W_down @ W_up`, (H, H), of `up` (N, H) and `down` (H, N); teacher and student may differ in N."""
    return down @ up


def weight_product_loss(teacher_product: Tensor, student_product: Tensor) -> Tensor:
    """L2: squared error of `P` relative to the teacher's; it has a gradient (README, difference 4)."""
    return (teacher_product - student_product).square().mean() / teacher_product.square().mean()
