"""Forward hooks that watch a model without changing it: layer outputs, and how often each FFN neuron fires.

Shapes: `B` batch, `T` tokens, `H` hidden, `N` neurons.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedpft.attention_mask import real_tokens
from fedpft.models.ffn import FFN

INACTIVE_GATED = 1e-3
"""|h| up to this counts as inactive in a gated FFN, whose activations are almost never exactly zero."""


@dataclass(frozen=True, kw_only=True)
class ActivationCounts:
    """How often neurons did not fire on real tokens; integers, so sums are exact in any order."""

    zeros: tuple[np.ndarray, ...]
    """Per FFN (N_l,) int64: positions at which the neuron was inactive."""
    positions: np.ndarray
    """(num FFNs,) int64: real token positions seen."""


@contextmanager
def layer_outputs(layers: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs `H_l`, (B, T, H), of the next forward pass, by position in `layers`."""
    outputs: dict[int, Tensor] = {}

    def hook_for(position: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs[position] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layer.register_forward_hook(hook_for(position)) for position, layer in enumerate(layers)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class NeuronWatch:
    """Calls `visit(position, h)` with the real tokens' activations `h`, (tokens, N), of each watched FFN.

    The activations are read at the input of `down`, after the gate. Padding is dropped by the mask given to
    :meth:`set_mask`, or by the rows given to :meth:`set_rows`, before each forward pass. Each FFN is visited once a
    pass: a backward pass that computes layers again does not count.
    """

    def __init__(self, ffns: Sequence[FFN], visit: Any) -> None:
        self._rows: Tensor | None = None
        self._visited: set[int] = set()
        self._visit = visit
        self._handles = [ffn.down.register_forward_pre_hook(self._hook_for(i)) for i, ffn in enumerate(ffns)]

    def set_mask(self, attention_mask: Tensor | None) -> None:
        """Announce the next batch's (B, T) mask, 1 for real tokens; None when every position is real."""
        self.set_rows(None if attention_mask is None else real_tokens(attention_mask))

    def set_rows(self, rows: Tensor | None) -> None:
        """Announce which of the next batch's B * T positions are real; None: all."""
        self._rows = rows
        self._visited.clear()

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _hook_for(self, position: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if position in self._visited:
                return
            self._visited.add(position)
            activations = args[0].detach().flatten(0, -2)
            rows = None if self._rows is None else self._rows.to(activations.device)
            self._visit(position, activations if rows is None else activations.index_select(0, rows))

        return hook


class InactivityCounter:
    """Counts, per FFN and neuron, at how many real token positions the neuron did not fire; for each client.

    Inactive is `h <= 0` for ungated FFNs (for ReLU the paper's exact zero) and `|h| <= 1e-3` for gated ones. Use as a
    context manager around the forward passes.
    """

    def __init__(self, ffns: Sequence[FFN], num_clients: int = 1) -> None:
        self._ffns = ffns
        self._zeros = [
            torch.zeros(num_clients, f.num_neurons, dtype=torch.int64, device=next(f.down.parameters()).device)
            for f in ffns
        ]
        self._positions = np.zeros((num_clients, len(ffns)), dtype=np.int64)
        self._clients: Sequence[int] = (0,)
        self._lengths: list[int] | None = None

    def __enter__(self) -> "InactivityCounter":
        """Attach the hooks."""
        self._watch = NeuronWatch(self._ffns, self._count)
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove the hooks."""
        self._watch.close()

    def set_mask(self, attention_mask: Tensor | None) -> None:
        """See :meth:`NeuronWatch.set_mask`; the next batch is the first client's."""
        self.set_rows(None if attention_mask is None else [real_tokens(attention_mask)])

    def set_rows(self, rows: Sequence[Tensor] | None, clients: Sequence[int] = (0,), num_positions: int = 0) -> None:
        """Announce the next batch: the parts of these clients, of so many positions each, one after the other.

        Args:
            rows: which positions of each part are real, as `real_tokens` returns them; None: all of them.
            clients: whose parts they are.
            num_positions: B * T of a part.

        """
        self._clients, self._lengths = clients, None
        if rows is not None:
            self._lengths = [len(part) for part in rows]
            rows = [part + number * num_positions for number, part in enumerate(rows)] if len(rows) > 1 else rows
        self._watch.set_rows(None if rows is None else torch.cat(list(rows)))

    def counts(self, client: int = 0) -> ActivationCounts:
        """Return what was counted so far."""
        return ActivationCounts(
            zeros=tuple(zeros[client].to("cpu", copy=True).numpy() for zeros in self._zeros),
            positions=self._positions[client].copy(),
        )

    def _count(self, position: int, activations: Tensor) -> None:
        gated = self._ffns[position].gate is not None
        inactive = activations.abs() <= INACTIVE_GATED if gated else activations <= 0
        parts = inactive.chunk(len(self._clients)) if self._lengths is None else inactive.split(self._lengths)
        for client, part in zip(self._clients, parts, strict=True):
            self._zeros[position][client] += part.sum(dim=0)
            self._positions[client, position] += len(part)
