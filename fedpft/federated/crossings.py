"""What leaves whom: every message between server and clients, from whom to whom, and when.

The page of the book that lists their fields is made from these; a test compares them with what crosses the pool.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedpft.federated.messages import (
    ClientFailure,
    ClientUpdate,
    LocalSettings,
    Masking,
    MaskingAnswer,
    MaskingStep,
    RoundPlan,
)
from fedpft.federated.package import ClientPackage
from fedpft.privacy.dp_sgd import ExampleNoise


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """How a message travels."""

    sender: str
    reader: str
    when: str
    only_in_a_simulation: tuple[str, ...] = ()
    """Fields that real clients would keep, or that no server with secure aggregation would see."""


CROSSINGS: Mapping[type[Any], Crossing] = {
    ClientPackage: Crossing(
        sender="server",
        reader="every client",
        when="once, before round 1",
        only_in_a_simulation=("train", "partition"),
    ),
    LocalSettings: Crossing(sender="server", reader="every client", when="inside `ClientPackage`"),
    ExampleNoise: Crossing(
        sender="server", reader="every client", when="inside `LocalSettings`, with `privacy.kind=example`"
    ),
    MaskingStep: Crossing(
        sender="server",
        reader="the round's clients",
        when="three times a round with secure aggregation: twice before the training, once after it",
    ),
    MaskingAnswer: Crossing(
        sender="client",
        reader="server, who passes keys on to all and encrypted shares to their holders",
        when="in answer to each `MaskingStep`",
        only_in_a_simulation=("actor", "node", "attempts"),
    ),
    RoundPlan: Crossing(sender="server", reader="the round's clients", when="each round"),
    Masking: Crossing(
        sender="server", reader="the round's clients", when="inside `RoundPlan`, with secure aggregation"
    ),
    ClientUpdate: Crossing(
        sender="client",
        reader="server",
        when="each round in which it takes part",
        only_in_a_simulation=("num_examples", "metrics", "actor", "node", "attempts", "sent_bytes"),
    ),
    ClientFailure: Crossing(
        sender="a client's place",
        reader="server",
        when="in place of an update",
        only_in_a_simulation=("actor", "node", "reason", "traceback", "out_of_memory"),
    ),
}
"""Message -> how it travels. Changed weights of the proxy's FFNs travel beside them, after an alignment."""

SIZES: Mapping[str, str] = {
    "proxy": "the sub-FM's weights, those of attention and FFNs in few bits with `pool.quantize`",
    "adapter": "4 bytes a number of LoRA and head",
    "shared": "as the adapter, where SCAFFOLD is used",
    "states": "of each of the round's clients as the adapter, where SCAFFOLD is used",
    "state": "as the adapter, where SCAFFOLD is used",
    "masked": "8 bytes a number of the adapter and of `counts`, and 8 or 16",
    "keys": "64 bytes a client",
    "inbox": "82 bytes a client, to each",
    "sent": "`keys`: 64 bytes; `shares`: 82 bytes a client; `unmask`: 33 bytes a client",
    "survivors": "4 bytes a client",
    "counts": "8 bytes a neuron of a compressed FFN, and 8 a layer",
    "train": "the training data",
    "partition": "8 bytes an example and a client",
}
"""Field -> its size; others have a few bytes."""
