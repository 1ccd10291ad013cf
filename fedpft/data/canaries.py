"""Canaries: texts of random tokens that somebody trains on or nobody, by a coin, so that what was learned shows.

Whoever can tell from a run's models which coins came up heads has a lower bound on epsilon, and one run is enough for
all coins together (Steinke et al. 2023, arXiv 2305.08846). A canary is of the unit that a guarantee protects: with
differential privacy of clients a whole client, which trains on its one text again and again or never takes part; else
one more example of a client.
"""

from dataclasses import dataclass

import datasets
import numpy as np


@dataclass(frozen=True)
class Canaries:
    """All canaries of a run, `n`: what an audit knows, and nobody else."""

    examples: datasets.Dataset
    """(n,) rows, like those of the training data."""
    planted: np.ndarray
    """(n,) bool: whose coin came up heads."""
    owners: np.ndarray
    """(n,) client ids."""
    first_row: int
    """Rows of the training data from here on are canaries."""
    are_clients: bool

    @property
    def clients(self) -> frozenset[int]:
        """Clients that are canaries, present or not."""
        return frozenset(self.owners.tolist()) if self.are_clients else frozenset()

    @property
    def absent(self) -> frozenset[int]:
        """Clients that never take part."""
        return frozenset(self.owners[~self.planted].tolist()) if self.are_clients else frozenset()
