"""A model's adapter in one piece of memory, for one client or several: trained as a whole instead of tensor by tensor.

Legend: `K` clients, `P` numbers of the adapter, in the order of `adapter_layout`.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedpft.devices import sent_to
from fedpft.models.lora import Factors, adapter_parameters, is_tuned, split_adapter

# rows of a stretch are no dense tensors; gradients with the same strides are what an optimiser of the stretch needs
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

_A, _B, _HEAD = range(3)
"""Parts of an adapter, in the order in which they lie in memory."""

ALIGNMENT = 16
"""In float32 numbers, 64 bytes: where a tensor of its own begins, so that matrix kernels give the same bits."""


class FlatAdapter:
    """Keeps K adapters as the rows of one stretch of memory, and their gradients in another.

    In memory all A of LoRA come first, then all B, then the head, so that whatever is tuned is a stretch of columns.

    The model's parameters are views of the rows that it faces: of one row they look as ever, of several they have a
    leading axis of clients, for :class:`fedpft.models.together.Together`. An elementwise optimiser gives the same bits
    on `values` as on the parameters, without a loop over dozens of small tensors. The gradients must stay where they
    are: set them to zero, not to None.

    Args:
        model: with a float32 adapter, on the device where it stays; its adapter becomes the first row.
        num_clients: K.

    """

    def __init__(self, model: nn.Module, num_clients: int = 1) -> None:
        named = adapter_parameters(model)
        lora, head = split_adapter(named)
        self.parameters = [*lora, *head]
        """The model's own, LoRA before head."""
        self._shapes = [parameter.shape for parameter in self.parameters]
        self._sizes = [parameter.numel() for parameter in self.parameters]
        name_of = {id(parameter): name for name, parameter in named.items()}
        self._names = [name_of[id(parameter)] for parameter in self.parameters]
        parts = [_part_of(name) for name in self._names]
        in_memory = sorted(range(len(parts)), key=parts.__getitem__)
        starts = np.cumsum([0, *(-(-self._sizes[i] // ALIGNMENT) * ALIGNMENT for i in in_memory)]).tolist()
        start_of = dict(zip(in_memory, starts, strict=False))
        self.segments = [slice(start_of[i], start_of[i] + size) for i, size in enumerate(self._sizes)]
        """Columns of each parameter; between them are zeros."""
        segment_of = dict(zip(self._names, self.segments, strict=True))
        self._layout = {name: segment_of[name] for name in named}
        self._ends = [starts[sum(other <= part for other in parts)] for part in range(_HEAD + 1)]
        start = torch.zeros(starts[-1], device=self.parameters[0].device)
        for parameter, segment in zip(self.parameters, self.segments, strict=True):
            start[segment] = parameter.detach().flatten()
        self.values = start.repeat(num_clients, 1)
        """(K, segments and zeros between them)."""
        self.gradients = torch.zeros_like(self.values)
        self.lora, self.head = (self._part(columns) for columns in self.columns())
        self._faced: range | None = None
        self.face([0])

    @property
    def num_clients(self) -> int:
        """K."""
        return len(self.values)

    def columns(self, factors: Factors = "all") -> list[slice]:
        """Return the columns of what is tuned of LoRA, and of the head; either may be empty."""
        end_of_a, end_of_b, end = self._ends
        lora = {"all": slice(0, end_of_b), "A": slice(0, end_of_a), "B": slice(end_of_a, end_of_b)}[factors]
        return [lora, slice(end_of_b, end)]

    def tuned_segments(self, factors: Factors = "all") -> list[slice]:
        """Return those of `segments` that are tuned."""
        return [s for name, s in zip(self._names, self.segments, strict=True) if is_tuned(name, factors)]

    def write(self, adapter: np.ndarray) -> None:
        """Set all values of every row, (P,), and forget the gradients.

        Raises:
            ValueError: the vector's length is not that of the layout.

        """
        self.fill(self.row_of(adapter))

    @torch.no_grad()
    def fill(self, row: Tensor) -> None:
        """Set every row to one like them, and forget the gradients."""
        self.values[:] = row
        self.zero_grad()

    def row_of(self, vector: np.ndarray, factors: Factors = "all", rest: Tensor | None = None) -> Tensor:
        """Return a vector, (P,), as it would lie in a row.

        Args:
            vector: of everything, or of what is tuned alone.
            factors: what is tuned.
            rest: a row that has all else; None: zeros.

        Raises:
            ValueError: the vector's length is not that of the layout.

        """
        segments = self._in_layout(factors)
        sizes = [segment.stop - segment.start for segment in segments]
        if vector.shape != (sum(sizes),):
            raise ValueError(f"adapter: found shape {vector.shape}, allowed: ({sum(sizes)},) as laid out by the model")
        row = torch.zeros_like(self.values[0]) if rest is None else rest.clone()
        sent = torch.tensor(vector).to(row.device, non_blocking=True)
        for segment, values in zip(segments, sent.split(sizes), strict=True):
            row[segment] = values
        return row

    def read(self, client: int = 0) -> np.ndarray:
        """Return a copy of all values of a row, (P,) float32."""
        return self.vector_of(self.values[client])

    def vector_of(self, row: Tensor, factors: Factors = "all") -> np.ndarray:
        """Return a copy of what is tuned in a row like one of `values`, float32 in the order of the layout."""
        return torch.cat([row[segment] for segment in self._in_layout(factors)]).cpu().numpy()

    def _in_layout(self, factors: Factors) -> list[slice]:
        return [segment for name, segment in self._layout.items() if is_tuned(name, factors)]

    def zero_grad(self) -> None:
        """Set the gradients to zero."""
        self.gradients.zero_()

    def face(self, clients: Sequence[int]) -> Tensor:
        """Let the model have the adapters of some rows, in ascending order; return their gradients, (clients, ...).

        Rows that do not lie side by side are copied; so their gradients are not a part of `gradients`.
        """
        near = range(clients[0], clients[-1] + 1)
        is_near = len(near) == len(clients)
        if is_near and near == self._faced:
            return self.gradients[near.start : near.stop]
        rows = slice(near.start, near.stop) if is_near else sent_to(self.values.device, clients)
        values = self.values[rows]
        gradients = self.gradients[rows] if is_near else torch.zeros_like(values)
        leading = () if len(clients) == 1 else (len(clients),)
        for parameter, segment, shape in zip(self.parameters, self.segments, self._shapes, strict=True):
            parameter.grad = None
            parameter.data = values[:, segment].view(*leading, *shape)
            parameter.grad = gradients[:, segment].view(*leading, *shape)
        self._faced = near if is_near else None
        return gradients

    def _part(self, columns: slice) -> list[nn.Parameter]:
        """Return some columns as a parameter with its gradient, (K, columns); none of none."""
        if columns.start == columns.stop:
            return []
        part = nn.Parameter(self.values[:, columns])
        part.grad = self.gradients[:, columns]
        return [part]


def _part_of(name: str) -> int:
    if "lora_" not in name:
        return _HEAD
    return _A if is_tuned(name, "A") else _B
