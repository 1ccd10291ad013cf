"""Parts of a data set."""

import warnings
from collections.abc import Mapping

import datasets
import numpy as np

from fedpft.data.sources.errors import fail
from fedpft.data.sources.on_disk import kept
from fedpft.seeding import numpy_rng

_SHOWN = 3


def subset(dataset: datasets.Dataset, indices: object) -> datasets.Dataset:
    """Return the chosen rows as a data set of its own: pickling it does not carry the rows left out."""
    return kept(dataset.select(indices, keep_in_memory=True).flatten_indices)


def without(dataset: datasets.Dataset, flaws: Mapping[int, str], split: str, key: str) -> datasets.Dataset:
    """Return a data set without the rows that have a flaw, and count them in a warning.

    Raises:
        ConfigError: no row is left; `key` is that of the column.

    """
    if not flaws:
        return dataset
    shown = "; ".join(flaws[row] for row in sorted(flaws)[:_SHOWN]) + ("; ..." if len(flaws) > _SHOWN else "")
    found = f"{len(flaws)} of {len(dataset)} {split} examples that will not do ({shown})"
    if len(flaws) == len(dataset):
        fail(key, found, "at least one that will")
    warnings.warn(f"{key}: dropped {found}", stacklevel=3)
    return subset(dataset, np.delete(np.arange(len(dataset)), list(flaws)))


def hold_out(dataset: datasets.Dataset, ratio: float, key: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return a data set without, and the fraction `ratio` of it, rows in their order; the same split every time.

    Raises:
        ConfigError: a side would be empty; `key` is the ratio's.

    """
    num_rows, num_held_out = len(dataset), round(ratio * len(dataset))
    if not 0 < num_held_out < num_rows:
        fail(key, ratio, f"a fraction with 1 to {num_rows - 1} of the {num_rows} training examples")
    order = numpy_rng(0, "hold_out").permutation(num_rows)  # not the run's seed: runs with other seeds are compared
    sides = order[num_held_out:], order[:num_held_out]
    kept, held_out = (subset(dataset, np.sort(side)) for side in sides)
    return kept, held_out
