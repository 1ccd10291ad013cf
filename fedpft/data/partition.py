"""PURE: labels -> which client owns which training example.

Legend: `E` examples, `K` clients, `C` labels that occur.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from fedpft.config import ConfigError

LAW_BLOCK_VALUES = 1 << 20  # label laws are drawn this many floats at a time: 8 MB, whatever the number of clients

MAX_LISTED_CLIENTS = 10_000
"""As many clients are listed one by one, the first ones; in files and figures a million would take gigabytes."""


@dataclass(frozen=True)
class Partition:
    """Every client's examples as one index array and offsets, so that a million clients cost a few megabytes.

    It is all that is held of clients in number; what else is asked of them is derived from it when it is.
    """

    order: np.ndarray
    """(E,) int32, beyond its range int64: the indices of all examples, client after client."""
    offsets: np.ndarray
    """(K + 1,) of the same type: client k owns `order[offsets[k]:offsets[k + 1]]`."""

    @classmethod
    def of_sizes(cls, order: np.ndarray, sizes: np.ndarray) -> "Partition":
        """Return the partition that deals `order`, (E,), out to clients of these sizes, (K,), which sum to E."""
        kind = np.int32 if len(order) <= np.iinfo(np.int32).max else np.int64
        return cls(order.astype(kind), np.concatenate(([0], np.cumsum(sizes))).astype(kind))

    @property
    def num_clients(self) -> int:
        """Number of clients, K."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """(K,): number of examples of each client; a new array each time."""
        return np.diff(self.offsets)

    def shard(self, client_id: int) -> np.ndarray:
        """Return the indices of one client's examples, a view; IndexError for a client that does not exist."""
        if not 0 <= client_id < self.num_clients:
            raise IndexError(f"client_id {client_id}, but the partition has {self.num_clients} clients")
        return self.order[self.offsets[client_id] : self.offsets[client_id + 1]]

    def blocks(self) -> Iterator["Partition"]:
        """Yield the partitions of clients 0 to `MAX_LISTED_CLIENTS` - 1, of as many that follow, and so on."""
        for first in range(0, self.num_clients, MAX_LISTED_CLIENTS):
            offsets = self.offsets[first : first + MAX_LISTED_CLIENTS + 1]
            yield Partition(self.order[offsets[0] : offsets[-1]], offsets - offsets[0])

    def hold_out(self, ratio: float, rng: np.random.Generator) -> "tuple[Partition, Partition]":
        """Return what clients train on, in the same order, and what each holds out.

        Args:
            ratio: of each client's examples, rounded down; below 1, so that everybody keeps one.
            rng: which ones; all clients' draws are made at once.

        """
        sizes = self.sizes
        held = np.floor(ratio * sizes + 1e-9).astype(np.int64)  # 0.29 * 100 is a little less than 29
        owner = np.repeat(np.arange(self.num_clients), sizes)
        shuffled = np.lexsort((rng.random(len(self.order)), owner))  # each client's own examples among themselves
        is_held = np.empty(len(self.order), dtype=bool)
        is_held[shuffled] = np.arange(len(self.order)) - self.offsets[owner] < held[owner]
        of_sizes = Partition.of_sizes
        return of_sizes(self.order[~is_held], sizes - held), of_sizes(self.order[is_held], held)

    def label_histogram(self, labels: np.ndarray, num_labels: int) -> np.ndarray:
        """Return (K, num_labels) int64: how many examples of each label each client owns, given all `labels`."""
        owner = np.repeat(np.arange(self.num_clients), self.sizes)
        cells = np.bincount(owner * num_labels + labels[self.order], minlength=self.num_clients * num_labels)
        return cells.reshape(self.num_clients, num_labels)


def make_partition(
    labels: np.ndarray,
    num_clients: int,
    rng: np.random.Generator,
    *,
    kind: str,
    dirichlet_alpha: float = 1.0,
    concentration: str = "total",
    labels_per_client: int = 2,
    size_imbalance: float = 0.0,
    owners: np.ndarray | None = None,
) -> Partition:
    """Deal every example to exactly one client; no client is empty.

    Args:
        labels: (E,) integer labels.
        num_clients: K; for `natural` the number of distinct owners.
        rng: the only source of chance.
        kind: `iid`, `dirichlet`, `shards` or `natural`.
        dirichlet_alpha: for `dirichlet`, see `concentration`.
        concentration: `total`: a client's label law is Dir(dirichlet_alpha * p), p the global label law (the authors'
            library, hence the paper); `per_label`: Dir(dirichlet_alpha * 1).
        labels_per_client: for `shards`: the most labels that a client owns.
        size_imbalance: sigma of the log-normal law of client sizes; 0: sizes differ by at most 1 (`shards`: nearly).
        owners: (E,) for `natural`: the owner of each example; clients are the sorted owners.

    Raises:
        ConfigError: more clients than examples, or settings that no deal can satisfy.

    """
    num_examples = len(labels)
    if kind == "natural":
        assert owners is not None
        return _natural(owners, num_clients)
    if num_clients > num_examples:
        _fail("federated.num_clients", num_clients, f"at most {num_examples} examples, so that nobody is empty")
    _, codes = np.unique(np.asarray(labels), return_inverse=True)
    weights = rng.lognormal(0.0, size_imbalance, num_clients) if size_imbalance > 0 else np.ones(num_clients)
    if kind == "shards":
        return _shards(codes, weights, labels_per_client, rng)
    sizes = _apportion(num_examples, weights)
    if kind == "iid":
        return Partition.of_sizes(rng.permutation(num_examples), sizes)
    if kind == "dirichlet":
        law = np.bincount(codes) / num_examples
        prior = dirichlet_alpha * (law if concentration == "total" else np.ones_like(law))
        return _dirichlet(codes, sizes, prior, rng)
    _fail("federated.partition.kind", kind, "iid, dirichlet, shards, natural")


def _natural(owners: np.ndarray, num_clients: int) -> Partition:
    names, codes = np.unique(owners, return_inverse=True)
    if len(names) != num_clients:
        _fail("federated.num_clients", num_clients, f"{len(names)}, the number of owners in federated.partition.column")
    return Partition.of_sizes(np.argsort(codes, kind="stable"), np.bincount(codes))


def _dirichlet(codes: np.ndarray, sizes: np.ndarray, prior: np.ndarray, rng: np.random.Generator) -> Partition:
    """Sizes first, then each client, in random order, fills up from its label law."""
    ends = np.cumsum(sizes)
    remaining = np.bincount(codes, minlength=len(prior))
    label_of_slot = np.empty(len(codes), dtype=codes.dtype)
    # Late clients get what is left; a random order keeps that from depending on client_id.
    clients = rng.permutation(len(sizes))
    for client, law in zip(clients, _label_laws(prior, len(sizes), rng), strict=True):
        counts = _draw(int(sizes[client]), law, remaining, rng)
        remaining -= counts
        label_of_slot[ends[client] - sizes[client] : ends[client]] = np.repeat(np.arange(len(prior)), counts)
    order = np.empty(len(codes), dtype=np.int64)
    order[np.argsort(label_of_slot, kind="stable")] = _shuffled_by_label(codes, rng)
    return Partition.of_sizes(order, sizes)


def _label_laws(prior: np.ndarray, num_clients: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    block = max(1, LAW_BLOCK_VALUES // len(prior))
    for start in range(0, num_clients, block):
        yield from rng.dirichlet(prior, min(block, num_clients - start))


def _draw(size: int, law: np.ndarray, remaining: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (C,) counts summing to `size`, at most `remaining`; ends: each pass fills up or exhausts a label."""
    counts = np.zeros_like(remaining)
    while (missing := size - counts.sum()) > 0:
        left = remaining - counts
        mass = np.where(left > 0, law, 0.0)
        # A law concentrated on exhausted labels (or one that underflowed) says nothing about the others.
        if not mass.sum() > 1e-12:
            mass = left.astype(float)
        # Rounded, not sampled, as in the authors' library: a client's labels follow its law to within one example.
        edges = np.floor(np.cumsum(mass / mass.sum() * missing) + rng.random()).astype(np.int64)
        edges[np.flatnonzero(mass)[-1] :] = missing
        counts += np.minimum(np.diff(np.minimum(edges, missing), prepend=0), left)
    return counts


def _shards(codes: np.ndarray, weights: np.ndarray, labels_per_client: int, rng: np.random.Generator) -> Partition:
    """Split each label among some clients, so that each holds at most `labels_per_client`, nearly all that many."""
    num_clients, label_counts = len(weights), np.bincount(codes)
    num_labels = len(label_counts)
    if num_clients * labels_per_client < num_labels:
        allowed = f"at least {-(-num_labels // num_clients)}: {num_clients} clients share {num_labels} labels"
        _fail("federated.partition.labels_per_client", labels_per_client, allowed)
    holders = _holders_per_label(label_counts, num_clients, num_clients * labels_per_client)
    capacity = np.full(num_clients, labels_per_client)
    owner = np.empty(len(codes), dtype=np.int64)
    start = np.concatenate(([0], np.cumsum(label_counts)))
    # The roomiest clients first, ties at random: loads never differ by more than 1, so nobody stays empty.
    for label in rng.permutation(num_labels):
        chosen = np.lexsort((rng.random(num_clients), -capacity))[: holders[label]]
        capacity[chosen] -= 1
        pieces = _apportion(int(label_counts[label]), weights[chosen])
        owner[start[label] : start[label + 1]] = np.repeat(chosen, pieces)
    order = _shuffled_by_label(codes, rng)[np.argsort(owner, kind="stable")]
    return Partition.of_sizes(order, np.bincount(owner, minlength=num_clients))


def _holders_per_label(label_counts: np.ndarray, num_clients: int, places: int) -> np.ndarray:
    """Return (C,): how many clients share each label, in proportion to its examples (d'Hondt), at least 1."""
    most = np.minimum(label_counts, num_clients)
    label = np.repeat(np.arange(len(label_counts)), most - 1)
    nth = np.concatenate([np.arange(2, m + 1) for m in most])
    best = np.argsort(-label_counts[label] / nth, kind="stable")[: places - len(label_counts)]
    return 1 + np.bincount(label[best], minlength=len(label_counts))


def _shuffled_by_label(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    examples = rng.permutation(len(codes))
    return examples[np.argsort(codes[examples], kind="stable")]


def _apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Return integers >= 1, proportional to `weights` as far as that allows, summing to `total` >= len(weights)."""
    descending = np.sort(weights)[::-1]
    above = np.arange(1, len(weights) + 1)
    scale = (total - (len(weights) - above)) / np.cumsum(descending)
    # scale[m]: if the m + 1 largest share what the others, at 1 each, leave; take the largest m that keeps them >= 1.
    fits = np.flatnonzero(scale * descending >= 1)
    shares = np.maximum(1.0, weights * scale[fits[-1] if len(fits) else 0])
    sizes = np.maximum(1, np.floor(shares + 1e-9).astype(np.int64))
    missing = total - sizes.sum()
    sizes[np.argsort(sizes - shares, kind="stable")[:missing]] += 1
    return sizes


def _fail(key: str, found: object, allowed: str) -> NoReturn:
    raise ConfigError(f"{key}: found {found!r}, allowed: {allowed}")
