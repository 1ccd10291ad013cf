"""What the server takes from a client: an update that would spoil the aggregate is a failure of that client."""

from collections.abc import Collection, Sequence

import numpy as np

from fedpft.federated.messages import Arrays, ClientFailure, ClientUpdate, RoundPlan, masked_size
from fedpft.models.activations import ActivationCounts


def check(
    outcome: ClientUpdate | ClientFailure,
    plan: RoundPlan,
    *,
    awaited: Collection[int],
    num_neurons: Sequence[int],
    keeps_state: bool = False,
) -> ClientUpdate | ClientFailure:
    """Return what a client sent if it is good (or a failure already), else the failure that says what is wrong.

    Args:
        outcome: what the pool returned.
        plan: what the client was asked to do, with an adapter of the shape of what it tunes.
        awaited: clients of the cohort that have not answered yet.
        num_neurons: neurons of each watched FFN, the shape of the counts.
        keeps_state: whether it must send a state, like the plan's `shared`.

    """
    if isinstance(outcome, ClientFailure):
        return outcome
    flaw = _flaw(outcome, plan, awaited, list(num_neurons))
    if flaw is None and outcome.state and not keeps_state:
        flaw = "a state that nobody asked for"
    if flaw is None and keeps_state:
        flaw = _flaw_of_state(outcome.state, plan.shared)
    if flaw is None:
        return outcome
    return ClientFailure(
        round_index=plan.round_index,
        client_id=outcome.client_id,
        attempts=outcome.attempts,
        actor=outcome.actor,
        node=outcome.node,
        reason=flaw,
    )


def _flaw(update: ClientUpdate, plan: RoundPlan, awaited: Collection[int], num_neurons: list[int]) -> str | None:
    adapter, loss = update.adapter, update.metrics.get("loss", np.nan)
    if update.client_id not in awaited:
        return f"an update of client {update.client_id}, who was not asked or has answered before"
    if plan.masking is not None:
        return _flaw_of_masked(update, plan, num_neurons)
    if update.masked is not None:
        return "a masked update, although nobody has agreed on masks"
    if adapter.shape != plan.adapter.shape or adapter.dtype != plan.adapter.dtype:
        expected = f"{plan.adapter.dtype} {plan.adapter.shape}"
        return f"adapter of type and shape {adapter.dtype} {adapter.shape}, expected {expected}"
    if not np.isfinite(adapter).all():
        return "the adapter has NaN or infinite values; try a lower federated.lr"
    if not np.isfinite(loss):
        return f"the loss is {loss}; try a lower federated.lr"
    if update.num_examples <= 0:
        return f"trained on {update.num_examples} examples, expected 1 or more"
    if (update.counts is not None) != plan.count_activations:
        return "activation counts are missing" if plan.count_activations else "activation counts that nobody asked for"
    return None if update.counts is None else _flaw_of_counts(update.counts, num_neurons)


def _flaw_of_masked(update: ClientUpdate, plan: RoundPlan, num_neurons: list[int]) -> str | None:
    """Return what of a masked update can be wrong for all to see; its numbers are the client's to check."""
    expected = (masked_size(plan, num_neurons),)
    if update.adapter.size or update.counts is not None or update.state:
        return "an update in the clear, expected a masked one"
    found = (None, ()) if update.masked is None else (str(update.masked.dtype), update.masked.shape)
    if found != ("uint64", expected):
        return f"a masked update of type and shape {found[0]} {found[1]}, expected uint64 {expected}"
    return None


def _flaw_of_state(state: Arrays, shared: Arrays) -> str | None:
    found, expected = ({name: (a.dtype, a.shape) for name, a in arrays.items()} for arrays in (state, shared))
    if found != expected:
        return f"a state of {found or 'nothing'}, expected {expected}"
    if not all(np.isfinite(array).all() for array in state.values()):
        return "the state has NaN or infinite values; try a lower federated.lr"
    return None


def _flaw_of_counts(counts: ActivationCounts, num_neurons: list[int]) -> str | None:
    shapes = [zeros.shape for zeros in counts.zeros]
    if shapes != [(neurons,) for neurons in num_neurons] or counts.positions.shape != (len(num_neurons),):
        return f"activation counts of shapes {shapes} and {counts.positions.shape}, expected {num_neurons} neurons"
    arrays = (*counts.zeros, counts.positions)
    if not all(np.issubdtype(array.dtype, np.integer) for array in arrays):
        return f"activation counts of type {[str(array.dtype) for array in arrays]}, expected integers"
    for layer, (zeros, positions) in enumerate(zip(counts.zeros, counts.positions, strict=True)):
        if positions <= 0 or zeros.min() < 0 or zeros.max() > positions:
            return f"activation counts of watched FFN {layer} from {zeros.min()} to {zeros.max()} of {positions} tokens"
    return None
