"""What averaging does to LoRA: a client tunes `B A`, and the mean of products is not the product of means.

    separate    means of A and of B apart; their product is off by how much clients disagree
    ffa         A stays as it began, clients tune B: exact, half the traffic (FFA-LoRA, Sun et al. 2024)
    svd         the mean of the products, cut to the rank of the adapter (FlexLoRA, Bai et al. 2024)
    fedsvd      clients tune B; the server then writes B A with an A of orthonormal rows (FedSVD, arXiv 2505.12805)
    alternate   clients tune B in odd rounds, A in even ones: exact in each (RoLoRA, Chen et al. 2024)

The adapter keeps its rank in every case. With `fedsvd` A spans the same space in all rounds, the one it began with:
what changes is how B's numbers weigh. Clients compute the gradients of a factor that they do not tune, too, and their
FLOPs say so: it is about 1 % of a step. Legend: `r` rank, `n` clients, `P` numbers of the adapter.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedpft.config import LoraAggregation
from fedpft.federated.aggregators.base import Memory
from fedpft.models.lora import AdapterLayout, Factors

MOST_PRODUCT_BYTES = 2**30
"""Of the products of all modules together; above it nobody measures how far the aggregate is from their mean."""

CLIENTS_AT_ONCE = 16
"""Whose products are summed in one multiplication."""


@dataclass(frozen=True)
class Pair:
    """Where one module's factors are in the flat vector."""

    a: slice
    b: slice
    rank: int

    def factors(self, adapter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return A (r, in) and B (out, r) of an adapter, as views."""
        return adapter[self.a].reshape(self.rank, -1), adapter[self.b].reshape(-1, self.rank)


def factor_pairs(layout: AdapterLayout) -> list[Pair]:
    """Return the modules that have LoRA, in the order of the layout."""
    ends = np.cumsum([0, *(math.prod(shape) for _, shape in layout)]).tolist()
    places = {name: (slice(*ends[i : i + 2]), shape) for i, (name, shape) in enumerate(layout)}
    pairs = []
    for name, (place, shape) in places.items():
        if "lora_A." in name:
            pairs.append(Pair(place, places[name.replace("lora_A.", "lora_B.")][0], shape[0]))
    return pairs


def tuned_factors(kind: LoraAggregation, round_index: int) -> Factors:
    """Return what clients tune in a round, from 1; B first, because A has no gradient while B is zero."""
    if kind in ("ffa", "fedsvd"):
        return "B"
    if kind == "alternate":
        return "B" if round_index % 2 else "A"
    return "all"


def orthonormal(adapter: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """Return the adapter, (P,) float32, with the same products and orthonormal rows of every A."""
    adapter = adapter.copy() if pairs else adapter
    for pair in pairs:
        a, b = (factor.astype(np.float64) for factor in pair.factors(adapter))
        _write(adapter, pair, *_truncated(b, a, pair.rank))
    return adapter


@dataclass
class Factored:
    """All adapters of a round so far."""

    adapters: np.ndarray
    """(most, P) float32; only the first `len(weights)` rows are filled."""
    weights: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class MeanOfProducts:
    """The weighted mean of the head, and of LoRA the best approximation of rank r to the mean of products.

    All adapters are held: the mean is the product of all factors side by side, whose triangular parts alone are
    decomposed.
    """

    pairs: Sequence[Pair]

    def init(self, start: np.ndarray, most: int, memory: Memory) -> Factored:
        """See `Aggregator`."""
        return Factored(np.empty((most, len(start)), dtype=np.float32))

    def add(self, state: Factored, adapter: np.ndarray, weight: float) -> Factored:
        """See `Aggregator`."""
        state.adapters[len(state.weights)] = adapter
        state.weights.append(weight)
        return state

    def finish(self, state: Factored) -> tuple[np.ndarray, Memory]:
        """See `Aggregator`."""
        adapters = state.adapters[: len(state.weights)]
        shares = np.array(state.weights) / sum(state.weights)
        mean = sum(np.multiply(a, share, dtype=np.float64) for a, share in zip(adapters, shares, strict=True))
        aggregate = np.asarray(mean, dtype=np.float32)
        for pair in self.pairs:
            a, b = _side_by_side(pair, adapters, shares)
            _write(aggregate, pair, *_truncated(b.astype(np.float64), a.astype(np.float64), pair.rank))
        return aggregate, {}


class Products:
    """The weighted mean of clients' products, to compare an aggregate with; holds the products of all modules."""

    def __init__(self, pairs: Sequence[Pair], size: int) -> None:
        self._pairs = pairs
        self._waiting = np.empty((CLIENTS_AT_ONCE, size), dtype=np.float32)
        self._weights: list[float] = []
        self._total_weight = 0.0
        self._sums: list[Any] = [0.0 for _ in pairs]

    def add(self, adapter: np.ndarray, weight: float) -> None:
        """Take one more adapter, (P,)."""
        self._waiting[len(self._weights)] = adapter
        self._weights.append(weight)
        self._total_weight += weight
        if len(self._weights) == CLIENTS_AT_ONCE:
            self._sum_up()

    def error(self, aggregate: np.ndarray) -> float:
        """Return `||mean(B A) - B' A'|| / ||mean(B A)||` over all modules, B' and A' the aggregate's; 0 of nothing."""
        self._sum_up()
        gap = total = 0.0
        for pair, products in zip(self._pairs, self._sums, strict=True):
            a, b = pair.factors(aggregate)
            mean = products / self._total_weight
            total += float(np.square(mean).sum())
            gap += float(np.square(mean - b.astype(np.float64) @ a).sum())
        return math.sqrt(gap / total) if total else 0.0

    def _sum_up(self) -> None:
        if self._weights:
            adapters = self._waiting[: len(self._weights)]
            for number, pair in enumerate(self._pairs):
                a, b = _side_by_side(pair, adapters, np.array(self._weights, dtype=np.float32))
                self._sums[number] = self._sums[number] + b @ a
            self._weights = []


def products_of(layout: AdapterLayout) -> Products | None:
    """Return what compares an aggregate with the mean of products; None: no LoRA, or too large ones."""
    pairs, shapes = factor_pairs(layout), dict(layout)
    outs = [shape[0] for name, shape in shapes.items() if "lora_B." in name]
    ins = [shape[1] for name, shape in shapes.items() if "lora_A." in name]
    num_bytes = 4 * sum(a * b for a, b in zip(outs, ins, strict=True))
    return Products(pairs, sum(map(math.prod, shapes.values()))) if 0 < num_bytes <= MOST_PRODUCT_BYTES else None


def _side_by_side(pair: Pair, adapters: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return A (n r, in) and weighted B (out, n r), whose product is the weighted sum of all clients' products."""
    factors = [pair.factors(adapter) for adapter in adapters]
    scaled: Iterator[np.ndarray] = (b * weight for (_, b), weight in zip(factors, weights, strict=True))
    return np.concatenate([a for a, _ in factors]), np.concatenate(list(scaled), axis=1)


def _truncated(b: np.ndarray, a: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return B' (out, r) and A' (r, in), whose rows are orthonormal, of the best B' A' for B A, of any inner size.

    Of two signs of a row that one is taken with which its largest number is positive.
    """
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    left, values, right = np.linalg.svd(r_b @ r_a.T)
    rows = right[:rank] @ q_a.T
    columns = q_b @ left[:, :rank] * np.pad(values, (0, rank))[:rank]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    signs = np.where(largest < 0, -1.0, 1.0)
    return columns * signs.T, rows * signs


def _write(adapter: np.ndarray, pair: Pair, b: np.ndarray, a: np.ndarray) -> None:
    adapter[pair.a], adapter[pair.b] = a.reshape(-1), b.reshape(-1)
