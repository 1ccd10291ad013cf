"""PURE: the accuracy of one model on each client's own held-out examples, and how fair it is."""

from math import ceil
from typing import Any

import numpy as np

from fedpft.data.partition import MAX_LISTED_CLIENTS, Partition

WORST_SHARE = 0.1


def client_accuracy(right: np.ndarray, held_out: Partition) -> dict[str, Any]:
    """Return how the accuracies of clients spread, each client with held-out examples counting once.

    Args:
        right: (H,) whether each held-out example got its label, in the order of `held_out.order`.
        held_out: who holds out which examples; some clients may have none.

    Returns:
        `client_accuracy`: `mean`, `variance`, `worst_decile` (the mean of the worst 10 %, rounded up), `min`, `max`,
        all to 6 decimals; `clients`, of how many; `without`, how many hold out nothing, having too few examples;
        `examples`, H. `client_accuracies`: those of the first `MAX_LISTED_CLIENTS`, None for one that holds out
        nothing. Empty if nobody holds out anything.

    """
    sizes = held_out.sizes
    owner = np.repeat(np.arange(len(sizes)), sizes)
    sums = np.bincount(owner, weights=right, minlength=len(sizes))
    by_client = np.divide(sums, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
    found = np.sort(by_client[sizes > 0])
    if not len(found):
        return {}
    spread = {
        "mean": found.mean(),
        "variance": found.var(),
        "worst_decile": found[: ceil(WORST_SHARE * len(found))].mean(),
        "min": found[0],
        "max": found[-1],
    }
    rounded = {name: round(float(value), 6) for name, value in spread.items()}
    counts = {"clients": len(found), "without": len(sizes) - len(found), "examples": len(right)}
    values = [None if np.isnan(value) else round(value, 6) for value in by_client[:MAX_LISTED_CLIENTS].tolist()]
    return {"client_accuracy": rounded | counts, "client_accuracies": values}
