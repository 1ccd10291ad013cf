"""SCAFFOLD's server: what it keeps of each client from round to round, and of all of them together.

The server's variate is always the mean of all clients' own, `c = sum_i p_i c_i` over everyone who owns data, also those
who have not trained yet, whose own is zero. `p_i` is the client's weight in the aggregate (its part of all examples, or
1 / num_clients as in the paper), so that drift is corrected towards the very objective that the aggregate is of.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedpft.federated.client_steps.corrected import VARIATE
from fedpft.federated.messages import Arrays

_SERVERS, _ROUNDS = "clients/variate", "clients/rounds"
"""Names in the server's arrays: `c`, (P,) float64; (num_clients,), the round of each client's own, 0: it has none."""


class ClientStates(Protocol):
    """Keeps what clients send as their state, by client and round."""

    def read(self, client_id: int, round_index: int) -> Arrays:
        """Return what was written for a client in a round."""

    def write(self, client_id: int, round_index: int, state: Arrays) -> None:
        """Keep a client's state beside its earlier ones."""

    def forget(self, round_index: int) -> None:
        """Drop all that was written in the newest round."""


class StatesInMemory:
    """Keeps them as long as the process lives."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, int], Arrays] = {}

    def read(self, client_id: int, round_index: int) -> Arrays:
        """See `ClientStates`."""
        return self._states[client_id, round_index]

    def write(self, client_id: int, round_index: int, state: Arrays) -> None:
        """See `ClientStates`."""
        self._states[client_id, round_index] = state

    def forget(self, round_index: int) -> None:
        """See `ClientStates`."""
        self._states = {key: state for key, state in self._states.items() if key[1] != round_index}


class _OwnStates(Mapping[int, Arrays]):
    """The state of each client that has one; read when asked for, so that a cohort's are never held together."""

    def __init__(self, states: ClientStates, rounds: np.ndarray) -> None:
        self._states, self._rounds = states, rounds

    def __getitem__(self, client_id: int) -> Arrays:
        if client_id not in self:
            raise KeyError(client_id)
        return self._states.read(client_id, int(self._rounds[client_id]))

    def __contains__(self, client_id: object) -> bool:
        return isinstance(client_id, int) and 0 <= client_id < len(self._rounds) and self._rounds[client_id] > 0

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._rounds).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._rounds))


@dataclass(frozen=True, kw_only=True)
class ControlVariates:
    """SCAFFOLD's server; what it remembers is in the arrays that it is given and returns, and in `states`."""

    states: ClientStates
    weights: np.ndarray
    """(num_clients,), `p_i`; their sum is 1."""

    def sent(self, memory: Arrays, num_parameters: int) -> tuple[Arrays, Mapping[int, Arrays]]:
        """Return what goes to every client, and by client what goes only to it."""
        variate = memory.get(_SERVERS, np.zeros(num_parameters)).astype(np.float32)
        return {VARIATE: variate}, _OwnStates(self.states, self._rounds(memory))

    def after_round(self, memory: Arrays, client_ids: Iterable[int], round_index: int) -> dict[str, np.ndarray]:
        """Return what the server remembers when these clients' new states are in `states`, in the order given."""
        rounds = self._rounds(memory)
        own = _OwnStates(self.states, rounds)
        changed, total = rounds.copy(), 0.0
        for client_id in client_ids:
            new = self.states.read(client_id, round_index)[VARIATE].astype(np.float64)
            total = total + self.weights[client_id] * (new - own[client_id][VARIATE] if client_id in own else new)
            changed[client_id] = round_index
        return {_SERVERS: memory.get(_SERVERS, np.zeros(())) + total, _ROUNDS: changed}

    def _rounds(self, memory: Arrays) -> np.ndarray:
        return memory.get(_ROUNDS, np.zeros(len(self.weights), dtype=np.int64))


def client_weights(sizes: np.ndarray, aggregation: str) -> np.ndarray:
    """Return each client's weight in an aggregate of all of them, (num_clients,), given their numbers of examples."""
    weights = np.ones(len(sizes)) if aggregation == "uniform" else sizes.astype(np.float64)
    return weights / weights.sum()
