"""How many clients of one shape of batch a place computes together."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from fedpft.federated.grouping import even_parts

NUM_TRIES = 2
"""Of each number of clients; the fastest counts."""

GAIN = 0.97
"""Twice as many clients must take less than this part of the time, each, or no more are tried."""


class Throughput:
    """Learns, from the steps that are due anyway, with how many clients a step takes the least time for each.

    1, 2, 4, ... are tried as long as it pays. Steps are looked up by their numbers of tokens or pixels, within a factor
    of two, since texts come in dozens of lengths.

    Args:
        is_to_learn: if not, as many as there are.

    """

    def __init__(self, *, is_to_learn: bool) -> None:
        self.is_to_learn = is_to_learn
        self._limits: dict[int, int] = {}
        self._next: dict[int, int] = defaultdict(lambda: 1)
        self._settled: set[int] = set()
        self._seconds: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))

    def cut(self, clients: Sequence[int], batch: Mapping[str, Tensor], most: int | None = None) -> list[Sequence[int]]:
        """Cut clients whose batches have the shape of this one into those that are computed together.

        Args:
            clients: any numbers.
            batch: of one of them.
            most: for which there is memory; None: not known.

        """
        size = _size(batch)
        limit = min(self._limits.get(size, len(clients)), len(clients) if most is None else max(1, most))
        if not self.is_to_learn:
            return even_parts(clients, limit)
        wanted = min(self._next[size], limit)
        if size in self._settled:
            return even_parts(clients, wanted)
        return [clients[start : start + wanted] for start in range(0, len(clients), wanted)]

    def note(self, batch: Mapping[str, Tensor], num_clients: int, seconds: float) -> None:
        """Learn how long a step of so many clients took."""
        size = _size(batch)
        if not self.is_to_learn or size in self._settled or num_clients != self._next[size]:
            return
        tries = self._seconds[size][num_clients]
        tries.append(seconds / num_clients)
        if len(tries) < NUM_TRIES:
            return
        if num_clients > 1 and min(tries) > GAIN * min(self._seconds[size][num_clients // 2]):
            self._settled.add(size)
            self._next[size] //= 2
        else:
            self._next[size] *= 2

    def halve(self, batch: Mapping[str, Tensor], num_clients: int) -> None:
        """Compute at most half as many together from now on."""
        self._limits[_size(batch)] = max(1, num_clients // 2)

    @property
    def found(self) -> dict[int, int]:
        """How many are computed together, by the size of a client's batch, as far as that is known."""
        return {size: min(self._next[size], self._limits.get(size, self._next[size])) for size in self._settled}


def _size(batch: Mapping[str, Tensor]) -> int:
    """Return the power of two above the largest number of values in one of the batch's tensors."""
    return 1 << max(tensor.numel() for tensor in batch.values()).bit_length()
