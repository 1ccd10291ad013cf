"""Which clients train together, and which of their batches meet in one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import groupby, pairwise
from math import ceil
from typing import Any

from torch import Tensor

from fedpft.federated.messages import LocalSettings

AUTO_MOST = 32
"""Clients that `auto` puts together at most where no bit depends on it: what pays is found at the place."""

AUTO_MOST_ELSEWHERE = 16
"""The same on a GPU or in mixed precision: a constant, because a measured one would make the numbers depend on it."""

GROUPS_PER_PLACE = 2
"""At least, where no bit depends on it: with one each, nobody could help a place that turns out to be slower."""


def most_together(settings: LocalSettings) -> int:
    """Return how many clients train together at most; where examples are computed side by side, one."""
    if settings.example_noise is not None:
        return 1
    if settings.clients_per_batch == "auto":
        return AUTO_MOST if settings.keeps_bits else AUTO_MOST_ELSEWHERE
    return settings.clients_per_batch


def groups(
    client_ids: Sequence[int], settings: LocalSettings, num_places: int, work: Callable[[int], float] = lambda _: 1.0
) -> list[tuple[int, ...]]:
    """Cut a round's clients into groups of about the same number or, for several places, of about the same work.

    A function of the round's plan alone where clients that train together do not get the bits that each gets alone: it
    is then the number of places, and nothing else, that must not matter. Elsewhere every place gets as many groups.

    Args:
        client_ids: in the order in which they start.
        settings: how many train together at most.
        num_places: that take groups.
        work: of a client, in any unit.

    """
    most = most_together(settings)
    if not settings.keeps_bits or num_places == 1:
        return [tuple(part) for part in even_parts(client_ids, most)]
    for_each_place = max(GROUPS_PER_PLACE, ceil(len(client_ids) / (most * num_places)))
    return parts_of_equal_work(client_ids, for_each_place * num_places, most, work)


def parts_of_equal_work(
    client_ids: Sequence[int], count: int, most: int, work: Callable[[int], float]
) -> list[tuple[int, ...]]:
    """Put each client, who has most to do first, where least is to do so far (Graham 1969, LPT).

    Args:
        client_ids: any.
        count: of parts; those that would be empty are left out.
        most: in a part.
        work: of a client, in any unit.

    Returns:
        The parts in the order of their first clients, each in the given order.

    """
    parts: list[list[int]] = [[] for _ in range(count)]
    with_room = [(0.0, part) for part in range(count)]  # a heap: the least work first
    for place in sorted(range(len(client_ids)), key=lambda place: -work(client_ids[place])):
        load, part = heappop(with_room)
        parts[part].append(place)
        if len(parts[part]) < most:
            heappush(with_room, (load + work(client_ids[place]), part))
    return [tuple(client_ids[place] for place in part) for part in sorted(map(sorted, parts)) if part]


def even_parts(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Cut a sequence into as few parts of at most `most` as there can be, as :func:`cut_into` does."""
    return cut_into(items, ceil(len(items) / max(1, most)))


def cut_into(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Cut a sequence into so many parts, none more than one longer than another.

    The longer ones come first, so that places that take part after part end at about the same time.
    """
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
