"""Everything that travels between the driver and the clients, and what came of it, as frozen dataclasses.

Adapters travel as one flat float32 vector whose layout (names and shapes in the order of `adapter_layout`) both ends
derive from the proxy itself, so that a message is a single zero-copy buffer in Ray's object store.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedpft.config import ClientConfig
from fedpft.federated.local_schedule import num_steps
from fedpft.models.activations import ActivationCounts
from fedpft.models.lora import Factors
from fedpft.privacy.dp_sgd import ExampleNoise
from fedpft.privacy.fixed_point import FixedPoint

Arrays = Mapping[str, np.ndarray]
"""By name, (P,) float32 each."""


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """How every client trains; the same in all rounds of a run."""

    seed: int
    """The run's seed; a client's own draws derive from (seed, round, client_id)."""
    num_epochs: int
    batch_size: int
    head_lr_ratio: float
    weight_decay: float
    max_grad_norm: float
    num_threads: int
    """Torch threads during a fit; part of the numerics."""
    precision: str
    """Lightning precision, e.g. `32-true`."""
    accelerator: str
    """Lightning accelerator, e.g. `cpu`."""
    frozen_dtype: str = "float32"
    """Of the proxy's frozen weights, e.g. `bfloat16`; the adapter is float32 with any."""
    recomputes: bool = False
    """Whether activations are computed again in the backward pass instead of kept."""
    clients_per_batch: int | Literal["auto"] = 1
    """How many clients a place trains together; `auto`: as many as pay."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """The rule of the steps."""
    example_noise: ExampleNoise | None = None
    """What becomes of each example's gradient before a step (DP-SGD); None: batches are as they come."""

    def num_steps(self, num_examples: int) -> int:
        """Return a client's steps in a round; an epoch's last batch and last step may be smaller ones."""
        return num_steps(
            num_examples, batch_size=self.batch_size, accumulate=self.accumulate, num_epochs=self.num_epochs
        )

    @property
    def keeps_bits(self) -> bool:
        """Whether clients that train together get the bits that each gets alone."""
        return self.accelerator == "cpu" and self.precision == "32-true" and self.frozen_dtype == "float32"


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What clients need in a round with secure aggregation, so that what they send is noise and only the sum is not."""

    keys: Mapping[int, bytes]
    """client_id -> its two public keys, of all who gave each other shares of their secrets."""
    fixed: FixedPoint
    """How updates become integers."""
    is_weighted: bool
    """Whether a client multiplies its update by its number of examples."""
    clip: float | None = None
    """L2 norm to which a client scales its update down, and then tells in one more number whether it had to; None: it
    does not."""


@dataclass(frozen=True, kw_only=True)
class MaskingStep:
    """What clients are asked before and after the training of a round with secure aggregation (down)."""

    step: Literal["keys", "shares", "unmask"]
    """`keys`: for public keys; `shares`: for shares of two secrets; `unmask`: for a share of each party."""
    round_index: int
    threshold: int = 0
    """Shares that give a secret back."""
    keys: Mapping[int, bytes] = field(default_factory=dict)
    """client_id -> its two public keys."""
    inbox: Mapping[int, Mapping[int, bytes]] = field(default_factory=dict)
    """client_id -> what only this client gets: shares that the others have encrypted to it, by sender."""
    survivors: frozenset[int] = frozenset()
    """Whose masked updates have arrived."""


@dataclass(frozen=True, kw_only=True)
class MaskingAnswer:
    """What a client answers to a step of secure aggregation (up)."""

    client_id: int
    sent: Mapping[int, bytes]
    """`keys`: its own public keys; `shares`: encrypted shares, by who is to hold them; `unmask`: of each client one
    share."""
    actor: str = field(default="driver", compare=False)
    """Who ran it."""
    node: str = field(default_factory=platform.node, compare=False)
    """Name of the machine on which it ran."""
    attempts: int = field(default=1, compare=False)
    """How often the client was asked until it came through."""


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """All that a client is told about a round (down)."""

    round_index: int
    """1-based."""
    lr: float
    """Of local steps; within the round it changes only by the clients' own schedule."""
    adapter: np.ndarray
    """(P,) float32: the global adapter, LoRA and head; or, on its way, only what is tuned of it."""
    count_activations: bool
    """Whether to count how often each FFN neuron does not fire (for neuron-level alignment)."""
    tuned: Factors = "all"
    """LoRA's other factor gets no step and no decay, and keeps its bits; the head is tuned with either."""
    is_whole: bool = True
    """Whether `adapter` is all of it; else the factor that is not tuned is the proxy's own, as it was broadcast."""
    shared: Arrays = field(default_factory=dict)
    """What every client gets besides the adapter: SCAFFOLD's server variate."""
    states: Mapping[int, Arrays] = field(default_factory=dict)
    """client_id -> what only this client gets: what it sent as `state` when it trained last. Read when it is sent."""
    tau: float = 1.0
    """FedNova's: how far the cohort's steps go, see `FedNova`."""
    masking: Masking | None = None
    """Of secure aggregation; None: updates are sent in the clear."""


@dataclass(frozen=True, kw_only=True)
class ClientReport:
    """What stays of a client's update when the aggregate has it."""

    client_id: int
    num_examples: int
    metrics: Mapping[str, float]
    """`loss`: mean training loss per example; `seconds`: duration of the fit; where they were counted, `flops` of all
    steps and `memory_bytes` of the largest (see `StepCosts`); on a GPU `gpu_bytes`, the peak that torch allocated; with
    secure aggregation `mask_seconds`; with DP of examples `clipped`, the part of their gradients that were too long."""
    actor: str = field(default="driver", compare=False)
    """Who ran it; never part of the result."""
    node: str = field(default_factory=platform.node, compare=False)
    """Name of the machine on which it ran."""
    attempts: int = field(default=1, compare=False)
    """How often the client was tried until it came through."""


@dataclass(frozen=True, kw_only=True)
class ClientUpdate(ClientReport):
    """All that a client returns (up)."""

    adapter: np.ndarray
    """(P,) float32, same layout as the plan's; on its way only what the plan tunes; empty where `masked` is sent."""
    counts: ActivationCounts | None = None
    state: Arrays = field(default_factory=dict)
    """What the client wants to find again when it trains next; the same names as the plan's `shared`."""
    masked: np.ndarray | None = None
    """(D,) uint64, in place of adapter and counts: the update in fixed point, the client's weight and its counts, with
    masks on them."""
    sent_bytes: int | None = field(default=None, compare=False)
    """What travelled, if that is not just what is here."""

    def report(self) -> ClientReport:
        """Return what is small of it."""
        return ClientReport(**{name: getattr(self, name) for name in ClientReport.__dataclass_fields__})

    @property
    def num_bytes(self) -> int:
        """Size of what travelled: adapter, counts and state, or what is masked."""
        if self.sent_bytes is not None:
            return self.sent_bytes
        arrays = [self.adapter, *self.state.values(), *([] if self.masked is None else [self.masked])]
        if self.counts is not None:
            arrays += [*self.counts.zeros, self.counts.positions]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, kw_only=True)
class ClientFailure:
    """What is known of a client that is dropped from a round."""

    round_index: int
    client_id: int
    attempts: int
    """How often it was tried."""
    actor: str
    """Who ran the last attempt."""
    node: str
    """Name of the machine on which that was."""
    reason: str
    """One line."""
    traceback: str = ""
    """The last attempt's, from where it ran; empty where there is none, e.g. for a killed process."""
    out_of_memory: bool = False
    """Whether it asked for more memory than there was."""

    def __str__(self) -> str:
        """Return everything but the traceback in one line."""
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        where = f"{self.actor} on {self.node}"
        return f"round {self.round_index}, client {self.client_id} ({where}, {tries}): {self.reason}"


def masked_size(plan: RoundPlan, num_neurons: Sequence[int]) -> int:
    """Return D of a masked update: numbers that are tuned, the weight, whether it was short, counts.

    Args:
        plan: with an adapter of the shape of what is tuned, and masks.
        num_neurons: of each watched FFN.

    """
    is_clipped = plan.masking is not None and plan.masking.clip is not None
    counts = sum(num_neurons) + len(num_neurons) if plan.count_activations else 0
    return len(plan.adapter) + 1 + is_clipped + counts
