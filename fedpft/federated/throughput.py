"""How many clients of one shape of batch a place computes together."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil

from torch import Tensor

from fedpft.federated.grouping import cut_into, even_parts

NUM_TRIES = 2
"""Of each number of clients; the fastest counts."""

GAIN = 0.97
"""More clients must take less than this part of the time, each, to be preferred."""


class Throughput:
    """Learns, from the steps that are due anyway, with how many clients a step takes the least time for each.

    1, 2, 4, ... are tried up to as many as there are, also where 2 do not pay: side by side has a price of its own,
    which many share. Where the most of these are the fastest, all at once are tried, too. Steps are looked up by their
    numbers of tokens or pixels, within a factor of two, since texts come in dozens of lengths.

    Args:
        is_to_learn: if not, as many as there are.

    """

    def __init__(self, *, is_to_learn: bool) -> None:
        self.is_to_learn = is_to_learn
        self._limits: dict[int, int] = {}
        self._seconds: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        """Of each client, by the step's size and the number of clients."""

    def cut(self, clients: Sequence[int], batch: Mapping[str, Tensor], most: int | None = None) -> list[Sequence[int]]:
        """Cut clients whose batches have the shape of this one into those that are computed together.

        Each part has about as many as are the fastest, known or tried: 13 of which 4 are the fastest are 5, 4 and 4.

        Args:
            clients: any numbers.
            batch: of one of them.
            most: for which there is memory; None: not known.

        """
        size = _size(batch)
        limit = min(self._limits.get(size, len(clients)), len(clients) if most is None else max(1, most))
        if not self.is_to_learn:
            return even_parts(clients, limit)
        parts, rest = [], clients
        for number in self._untried(size, limit):
            if number <= len(rest):
                parts.append(rest[:number])
                rest = rest[number:]
        nearest = round(len(rest) / self.best(size))
        return parts + cut_into(rest, max(nearest, ceil(len(rest) / limit)))

    def note(self, batch: Mapping[str, Tensor], num_clients: int, seconds: float) -> None:
        """Learn how long a step of so many clients took."""
        tries = self._seconds[_size(batch)][num_clients]
        if self.is_to_learn and len(tries) < NUM_TRIES:
            tries.append(seconds / num_clients)

    def halve(self, batch: Mapping[str, Tensor], num_clients: int) -> None:
        """Compute at most half as many together from now on."""
        self._limits[_size(batch)] = max(1, num_clients // 2)

    def best(self, size: int) -> int:
        """Return the fewest clients that are as fast as any number at this size, as far as is known."""
        fastest = {number: min(tries) for number, tries in self._seconds[size].items() if tries}
        return min((n for n, each in fastest.items() if each * GAIN <= min(fastest.values())), default=1)

    def _untried(self, size: int, limit: int) -> list[int]:
        """Return the numbers up to a limit that are still to be tried, each as often as it is."""
        numbers = [2**power for power in range(limit.bit_length())]
        untried = [number for number in numbers for _ in range(NUM_TRIES - len(self._seconds[size][number]))]
        if not untried and limit > self.best(size) >= numbers[-1]:
            untried = [limit] * (NUM_TRIES - len(self._seconds[size][limit]))
        return untried


def _size(batch: Mapping[str, Tensor]) -> int:
    """Return the power of two above the largest number of values in one of the batch's tensors."""
    return 1 << max(tensor.numel() for tensor in batch.values()).bit_length()
