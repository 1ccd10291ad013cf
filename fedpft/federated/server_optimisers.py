"""The server's step with a round's aggregate (Reddi et al. 2021, Adaptive Federated Optimization): pure functions.

Legend: `P` numbers of the adapter; an update is the aggregate minus the adapter, the negative of their pseudo-gradient.
Nothing corrects the bias of the first rounds, as in their Algorithm 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]


class ServerOptimiser(Protocol):
    """From an adapter and what a round would change in it to the next adapter."""

    def init(self, adapter: np.ndarray) -> Arrays:
        """Return what it remembers before the first round; everything must be in these arrays."""

    def step(self, state: Arrays, adapter: np.ndarray, update: np.ndarray) -> tuple[Arrays, np.ndarray]:
        """Return what it remembers now and the next adapter, (P,); `adapter` (P,) float32, `update` (P,) float64."""


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """`m = beta1 * m + update`, then a step of `lr * m` (Hsu et al. 2019, FedAvgM); without `beta1` only the rate."""

    lr: np.ndarray
    """(P,)."""
    beta1: float

    def init(self, adapter: np.ndarray) -> Arrays:
        """See `ServerOptimiser`."""
        return {"m": np.zeros(adapter.shape)} if self.beta1 else {}

    def step(self, state: Arrays, adapter: np.ndarray, update: np.ndarray) -> tuple[Arrays, np.ndarray]:
        """See `ServerOptimiser`."""
        if not self.beta1:
            return {}, adapter + self.lr * update
        m = self.beta1 * state["m"] + update
        return {"m": m}, adapter + self.lr * m


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """`m = beta1 * m + (1 - beta1) * update`, then a step of `lr * m / (sqrt(v) + tau)`; `v` begins at `tau ** 2`."""

    kind: Literal["adam", "yogi", "adagrad"]
    lr: np.ndarray
    """(P,)."""
    beta1: float
    beta2: float
    tau: float

    def init(self, adapter: np.ndarray) -> Arrays:
        """See `ServerOptimiser`."""
        return {"m": np.zeros(adapter.shape), "v": np.full(adapter.shape, self.tau**2)}

    def step(self, state: Arrays, adapter: np.ndarray, update: np.ndarray) -> tuple[Arrays, np.ndarray]:
        """See `ServerOptimiser`."""
        m = self.beta1 * state["m"] + (1 - self.beta1) * update
        v, square = state["v"], update**2
        if self.kind == "adagrad":
            v = v + square
        elif self.kind == "adam":
            v = self.beta2 * v + (1 - self.beta2) * square
        else:
            v = v - (1 - self.beta2) * square * np.sign(v - square)
        return {"m": m, "v": v}, adapter + self.lr * m / (np.sqrt(v) + self.tau)
