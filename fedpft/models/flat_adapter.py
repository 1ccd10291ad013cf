"""A model's adapter in one piece of memory: trained as a whole instead of tensor by tensor.

Legend: `P` numbers of the adapter, in the order of `adapter_layout`.
"""

import numpy as np
import torch
from torch import nn

from fedpft.models.lora import adapter_parameters, split_adapter

ALIGNMENT = 16
"""In float32 numbers, 64 bytes: where a tensor of its own begins, so that matrix kernels give the same bits."""


class FlatAdapter:
    """Moves the adapter's parameters into one stretch of memory for LoRA and one for the head, and their gradients too.

    What works on the parameters sees no difference. An elementwise optimiser gives the same bits on `lora` and `head`
    as on them, without a loop over dozens of small tensors. The gradients must stay where they are: set them to zero,
    not to None.

    Args:
        model: with a float32 adapter, on the device where it stays.

    """

    def __init__(self, model: nn.Module) -> None:
        named = adapter_parameters(model)
        lora, head = split_adapter(named)
        self.parameters = [*lora, *head]
        """The model's own, LoRA before head."""
        self.lora, self.head = _gather(lora), _gather(head)
        self._views = [parameter.detach().view(-1) for parameter in named.values()]
        self._sizes = [len(view) for view in self._views]

    @torch.no_grad()
    def write(self, adapter: np.ndarray) -> None:
        """Set all values, (P,), and forget the gradients.

        Raises:
            ValueError: the vector's length is not that of the layout.

        """
        expected = (sum(self._sizes),)
        if adapter.shape != expected:
            raise ValueError(f"adapter: found shape {adapter.shape}, allowed: {expected} as laid out by the model")
        for view, values in zip(self._views, torch.tensor(adapter).split(self._sizes), strict=True):
            view.copy_(values)
        self.zero_grad()

    def read(self) -> np.ndarray:
        """Return a copy of all values, (P,) float32."""
        return torch.cat(self._views).cpu().numpy()

    def zero_grad(self) -> None:
        """Set the gradients to zero."""
        for stretch in (*self.lora, *self.head):
            assert stretch.grad is not None
            stretch.grad.zero_()


def _gather(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Move parameters and their gradients into one new parameter, with zeros between them; none of none."""
    if not parameters:
        return []
    starts = np.cumsum([0, *(-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in parameters)]).tolist()
    whole = nn.Parameter(torch.zeros(starts.pop(), device=parameters[0].device))
    whole.grad = torch.zeros_like(whole)
    for start, parameter in zip(starts, parameters, strict=True):
        values, gradient = (
            stretch[start : start + parameter.numel()].view(parameter.shape) for stretch in (whole.data, whole.grad)
        )
        values.copy_(parameter.detach())
        parameter.data, parameter.grad = values, gradient
    return [whole]
