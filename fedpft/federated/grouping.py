"""Which clients train together, and which of their batches meet in one forward pass."""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from math import ceil
from typing import Any

from torch import Tensor

from fedpft.federated.messages import LocalSettings

AUTO_MOST = 32
"""Clients that `auto` puts together at most where no bit depends on it: what pays is found at the place."""

AUTO_MOST_ELSEWHERE = 16
"""The same on a GPU or in mixed precision: a constant, because a measured one would make the numbers depend on it."""

GROUPS_PER_PLACE, AUTO_GROUPS_PER_PLACE = 2, 4
"""At least, where no bit depends on it: a single one could not be shared out among places evenly. `auto` may
choose more and smaller ones: who has more to do is waited for less long."""


def most_together(settings: LocalSettings) -> int:
    """Return how many clients train together at most; where examples are computed side by side, one."""
    if settings.example_noise is not None:
        return 1
    if settings.clients_per_batch == "auto":
        return AUTO_MOST if settings.keeps_bits else AUTO_MOST_ELSEWHERE
    return settings.clients_per_batch


def groups(client_ids: Sequence[int], settings: LocalSettings, num_places: int) -> list[tuple[int, ...]]:
    """Cut a round's clients, in their order, into groups of about the same number.

    A function of the round's plan alone where clients that train together do not get the bits that each gets alone: it
    is then the number of places, and nothing else, that must not matter. Elsewhere every place gets as many groups.
    """
    most, multiple = most_together(settings), 1
    if settings.keeps_bits and num_places > 1:
        per_place = AUTO_GROUPS_PER_PLACE if settings.clients_per_batch == "auto" else GROUPS_PER_PLACE
        most, multiple = min(most, ceil(len(client_ids) / (per_place * num_places))), num_places
    return [tuple(part) for part in even_parts(client_ids, most, multiple)]


def even_parts(items: Sequence[Any], most: int, multiple: int = 1) -> list[Sequence[Any]]:
    """Cut a sequence into as few parts of at most `most` as there can be, none more than one longer than another.

    The longer ones come first, so that places that take part after part end at about the same time.

    Args:
        items: any.
        most: in a part.
        multiple: of which their number is, as long as there are so many items.

    """
    count = min(ceil(len(items) / (max(1, most) * multiple)) * multiple, len(items))
    if not count:
        return []
    length, longer = divmod(len(items), count)
    ends = [part * length + min(part, longer) for part in range(count + 1)]
    return [items[start:end] for start, end in pairwise(ends)]


def shape_of(batch: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """Return what two batches must have in common to be computed together as each would be alone.

    Shapes, so that both are padded as if alone; and whether there is padding, since without any models use no mask.
    """
    mask = batch.get("attention_mask")
    return (*((name, tuple(tensor.shape)) for name, tensor in batch.items()), mask is None or bool(mask.all()))


def by_shape(batches: Mapping[int, Mapping[str, Tensor]]) -> list[list[int]]:
    """Return the keys of batches of one shape together, ascending."""
    shapes = {key: repr(shape_of(batch)) for key, batch in batches.items()}
    return [list(keys) for _, keys in groupby(sorted(shapes, key=lambda key: (shapes[key], key)), key=shapes.get)]
