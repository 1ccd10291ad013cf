"""The client's side of secure aggregation: what leaves a place where clients are played has masks on it.

Both pools call this where they train, an actor's process or, without actors, the driver's: it is then the clients, too.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedpft.federated.messages import (
    ClientFailure,
    ClientUpdate,
    Masking,
    MaskingAnswer,
    MaskingStep,
    RoundPlan,
)
from fedpft.privacy.mechanism import clipped

if TYPE_CHECKING:
    from fedpft.federated.client import LocalClient


def sent(
    updates: Sequence[ClientUpdate], plan: RoundPlan, client: "LocalClient", seed: int
) -> list[ClientUpdate | ClientFailure]:
    """Return what clients send of their updates: these, or masked ones where the plan has masks.

    Args:
        updates: as trained.
        plan: the round's.
        client: the place where they were trained.
        seed: of the clients' key material.

    """
    if plan.masking is None:
        return list(updates)
    start = client.start(plan)
    return [_masked(update, start, plan.round_index, plan.masking, seed) for update in updates]


def answer(step: MaskingStep, client_id: int, seed: int, actor: str) -> MaskingAnswer:
    """Return what a client answers to a step before or after the training.

    Raises:
        ValueError: a question that an honest server does not ask.

    """
    from fedpft.privacy.masking import Party  # cryptography is an extra

    party = Party(seed, step.round_index, client_id)
    if step.step == "keys":
        sent = {client_id: party.public_keys}
    elif step.step == "shares":
        sent = party.sealed_shares(step.keys, step.threshold)
    else:
        sent = party.reveal(step.inbox[client_id], step.keys, step.survivors, step.threshold)
    return MaskingAnswer(client_id=client_id, sent=sent, actor=actor)


def as_integers(update: ClientUpdate, start: np.ndarray, masking: Masking) -> np.ndarray:
    """Return a client's update, weight and counts as integers modulo 2^64, (D,) uint64, before any mask.

    Raises:
        ValueError: numbers that cannot be told in fixed point, or that would spoil the sum; one line.

    """
    weight = update.num_examples if masking.is_weighted else 1
    if not np.isfinite(update.metrics["loss"]):
        raise ValueError(f"the loss is {update.metrics['loss']}; try a lower federated.lr")
    change, whole = update.adapter.astype(np.float64) - start, [np.array([weight])]
    if masking.clip is not None:
        change, is_short = clipped(change, masking.clip)
        whole.append(np.array([is_short]))
    if update.counts is not None:
        whole += [*update.counts.zeros, update.counts.positions]
    integers = masking.fixed.encode(change, weight)
    return np.concatenate([integers, *(part.astype(np.int64).view(np.uint64) for part in whole)])


def _masked(
    update: ClientUpdate, start: np.ndarray, round_index: int, masking: Masking, seed: int
) -> ClientUpdate | ClientFailure:
    from fedpft.privacy.masking import Party

    begin = time.perf_counter()
    try:
        integers = as_integers(update, start, masking)
    except ValueError as error:  # a second try would give the same numbers
        return ClientFailure(
            round_index=round_index,
            client_id=update.client_id,
            attempts=update.attempts,
            actor=update.actor,
            node=update.node,
            reason=str(error),
        )
    masked = Party(seed, round_index, update.client_id).mask(integers, masking.keys)
    metrics = {**update.metrics, "mask_seconds": time.perf_counter() - begin}
    return replace(update, adapter=np.zeros(0, dtype=np.float32), counts=None, masked=masked, metrics=metrics)
