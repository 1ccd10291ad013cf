"""What a federated tuning method is: how the FM becomes a proxy, and how the tuned adapter gets back into the FM."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fedpft.evaluation.fidelity import LayerPairs
from fedpft.models.activations import ActivationCounts
from fedpft.models.ffn import find_ffns
from fedpft.models.lora import AdaptedModel
from fedpft.models.shared_neurons import NeuronsKept


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """What clients tune, whatever the method."""

    model: AdaptedModel
    """With an attached adapter."""
    watched_layers: tuple[int, ...]
    """Layers whose FFN activations clients count when asked."""
    construction: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, for `result.json`."""
    layer_pairs: LayerPairs | None = None
    """Layers of FM and proxy that the fidelity meter compares; None: all, of two models of the same depth."""
    neurons: NeuronsKept = field(default_factory=dict)
    """Of the FM's FFNs; layers that are not named are whole."""
    is_fm: bool = False
    """Whether it is the FM itself, with nothing to compare and no second accuracy."""

    @property
    def num_neurons(self) -> tuple[int, ...]:
        """Neurons of each watched FFN."""
        ffns = find_ffns(self.model)
        return tuple(ffns[layer].num_neurons for layer in self.watched_layers)


@dataclass(frozen=True, kw_only=True)
class ProxyChange:
    """What a method changed in the proxy after a round."""

    weights: Mapping[str, np.ndarray]
    """Parameter name in the proxy -> new value, whole tensors; the only thing sent to the clients."""
    metrics: Mapping[str, float]
    """For the round's record, e.g. `align/loss`."""


class Method(Protocol):
    """One federated tuning method; owns the FM and the proxy on the server."""

    def build_proxy(self, saved: Mapping[str, Tensor] | None = None) -> Proxy:
        """Derive the proxy from the FM, before any round; or rebuild it, bit for bit, from :meth:`saved_proxy`."""

    def saved_proxy(self) -> Mapping[str, Tensor]:
        """Return copies, on the CPU, of all that tells the proxy as it is now, without its adapter, from the FM."""

    def wants_counts(self, round_index: int, num_rounds: int) -> bool:
        """Whether clients should count activations in this round (1-based)."""

    def after_round(self, round_index: int, adapter: np.ndarray, counts: ActivationCounts) -> ProxyChange:
        """Change the proxy between rounds; called only after rounds that wanted counts, with the aggregated adapter."""

    def plug_in(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the FM with the adapter in it: the result."""

    def proxy_with(self, adapter: np.ndarray) -> AdaptedModel:
        """Return the server's proxy with the adapter in it: what a client could run."""


class FixedProxy:
    """What the methods have in common that leave their proxy alone between rounds."""

    def wants_counts(self, round_index: int, num_rounds: int) -> bool:
        """Never: there is nothing to count for."""
        return False

    def after_round(self, round_index: int, adapter: np.ndarray, counts: ActivationCounts) -> ProxyChange:
        """Never called, because no round wants counts."""
        raise AssertionError("no round wanted counts")
