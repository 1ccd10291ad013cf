"""What changed in a model's weights: rows or columns of them, where the rest stayed as it was.

An alignment of neurons changes those that it was given: rows of `up` and `gate`, entries of their biases, columns of
`down`. Found by comparing bits, this holds for every layout of a family, and for weights in few bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Patch:
    """New values of some slices of an array along one axis."""

    axis: int
    index: np.ndarray
    """(n,) int32: which slices, ascending."""
    values: np.ndarray
    """The array's shape with n along the axis."""

    @property
    def nbytes(self) -> int:
        """Size of both arrays."""
        return self.index.nbytes + self.values.nbytes


Change = np.ndarray | Patch
"""Of one array: all of it anew, or slices."""


def difference(before: np.ndarray, after: np.ndarray) -> Change:
    """Return the smallest change that makes `before` to `after`, bit by bit."""
    if before.shape != after.shape or before.dtype != after.dtype or not after.ndim:
        return after
    differs = before.view(f"u{before.itemsize}") != after.view(f"u{after.itemsize}")
    smallest: Change = after
    for axis in range(after.ndim):
        others = tuple(other for other in range(after.ndim) if other != axis)
        index = np.flatnonzero(differs.any(axis=others)).astype(np.int32)
        patch = Patch(axis=axis, index=index, values=np.take(after, index, axis=axis))
        smallest = patch if patch.nbytes < smallest.nbytes else smallest
    return smallest


class HeldWeights:
    """What places hold of a proxy's frozen weights, and what of it a change touches.

    Args:
        first: by name, as they were sent before the first round.

    """

    def __init__(self, first: Mapping[str, np.ndarray]) -> None:
        self._first = first
        self.changed: dict[str, np.ndarray] = {}
        """The newest value of all that is not as in the beginning."""

    def changes(self, weights: Mapping[str, np.ndarray]) -> dict[str, Change]:
        """Return what differs in these weights from what is held, and from now on hold them."""
        held = {**{name: self._first[name] for name in weights if name in self._first}, **self.changed}
        self.changed |= weights
        return {name: difference(held[name], new) if name in held else new for name, new in weights.items()}


def num_bytes(changes: Mapping[str, Change]) -> int:
    """Return the size of changes."""
    return sum(change.nbytes for change in changes.values())
