"""Distillation of the sub-FM's FFNs towards the FM's hidden states, as a LightningModule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fedpft.align.distillation import Distillation
from fedpft.align.losses import hidden_state_loss, mean_loss, weight_product, weight_product_loss
from fedpft.models.ffn import FFN, find_ffns


@dataclass(frozen=True, kw_only=True)
class AlignmentLoss:
    """One batch's loss and its two terms, averaged over the compressed layers."""

    total: Tensor
    hidden: Tensor
    product: Tensor


class AlignmentModule(Distillation):
    """Teacher = FM, student = sub-FM; trains the FFNs of `layers` with the norm at their output, if any.

    Args:
        teacher, student: see :class:`Distillation`; models of the same depth.
        layers: compressed layers, whose terms are averaged and whose FFNs are trained.
        product_weight: weight of the second loss term (the paper's alpha).
        neuron_masks: layer -> (N,) bool, the neurons that may change; None lets all change.
        settings: `lr, num_steps, num_warmup_steps, weight_decay`, see :class:`Distillation`.

    Only the dropout at the output of a trained FFN is active. Every parameter outside the trained set, and every
    masked neuron's row and column, is bit-identical after training: its gradient is zero, and so is its decay, because
    weight decay is refused together with masks.

    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        layers: Sequence[int],
        product_weight: float = 0.0,
        neuron_masks: Mapping[int, Tensor] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(teacher, student, **settings)
        assert self.weight_decay == 0 or neuron_masks is None, "weight decay would move the masked neurons"
        self.product_weight = product_weight
        teacher_ffns, student_ffns = find_ffns(teacher), find_ffns(student)
        self._teacher_ffns = [teacher_ffns[layer] for layer in layers]
        self._student_ffns = [student_ffns[layer] for layer in layers]
        self._masks = [] if neuron_masks is None else self._gradient_masks([neuron_masks[layer] for layer in layers])
        self._products: list[Tensor] = []

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that alignment changes; everything else is frozen."""
        return [parameter for ffn in self._student_ffns for parameter in ffn.parameters()]

    def active_modules(self) -> list[nn.Module]:
        """Return the dropouts at the outputs of the trained FFNs."""
        return [ffn.dropout for ffn in self._student_ffns if ffn.dropout is not None]

    def loss(self, batch: Mapping[str, Tensor]) -> AlignmentLoss:
        """Return `mean over layers of (L1 + product_weight * L2)` on one unlabelled batch."""
        teacher, student = ([ffn.layer for ffn in ffns] for ffns in (self._teacher_ffns, self._student_ffns))
        hidden = [hidden_state_loss(*outputs) for outputs in self.hidden_states(batch, teacher, student)]
        product = hidden[0].new_zeros(()) if self.product_weight == 0 else self._product_term()
        mean_hidden = mean_loss(hidden)
        return AlignmentLoss(total=mean_hidden + self.product_weight * product, hidden=mean_hidden, product=product)

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Return the batch's loss."""
        return self.loss(batch).total

    def on_after_backward(self) -> None:
        """Zero the gradient of frozen neurons, before it is clipped."""
        for parameter, mask in self._masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let masks and products follow the module to another device; as buffers, several processes would sync them."""
        super()._apply(fn, recurse)
        self._masks = [(parameter, fn(mask)) for parameter, mask in self._masks]
        self._products = [fn(product) for product in self._products]
        return self

    def _product_term(self) -> Tensor:
        device = "cuda" if self._student_ffns[0].down_weight.is_cuda else "cpu"
        with torch.autocast(device, enabled=False):  # squares of small weights vanish in half precision
            students = [_product(ffn) for ffn in self._student_ffns]
            return mean_loss(list(map(weight_product_loss, self._teacher_products(), students)))

    @torch.no_grad()
    def _teacher_products(self) -> list[Tensor]:
        """Compute the FM's products once: its weights do not change, and they cost as much as many tokens."""
        if not self._products:
            self._products = [_product(ffn) for ffn in self._teacher_ffns]
        return self._products

    def _gradient_masks(self, neuron_masks: Sequence[Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
        masks = []
        for ffn, neurons in zip(self._student_ffns, neuron_masks, strict=True):
            for parameter, axis in ffn.neuron_axes():
                shape = [1] * parameter.ndim
                shape[axis] = parameter.shape[axis]
                everywhere = neurons.repeat(shape[axis] // len(neurons))
                masks.append((parameter, everywhere.view(shape).to(parameter)))
        return masks


def _product(ffn: FFN) -> Tensor:
    return weight_product(ffn.up_weight.float(), ffn.down_weight.float())
