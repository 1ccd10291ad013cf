"""The round loop, the server's side of federated learning.

    state (global adapter, proxy version)
      |  1. sample the cohort
      |  2. plan: adapter, learning rate, whether to count activations
      v
    pool.run(plan) ---> clients train in parallel, updates arrive in any order
      |  3. wait for every update of the cohort, check it
      |  4. aggregate in client-id order
      |  5. every t rounds: the method re-aligns the proxy; changed weights go to the pool
      |  6. every e rounds and at the end: evaluate
      |  7. track
      |  8. checkpoint: hand the state to whoever keeps it
      v
    state of the next round

The driver waits for the whole cohort in step 3; clients wait for the driver in steps 4 to 8. It knows the pool and the
method by their protocols only.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedpft.config import FederatedConfig
from fedpft.federated.aggregate import aggregate_adapters, in_client_order, mean_loss, sum_counts
from fedpft.federated.messages import ClientUpdate, RoundPlan
from fedpft.federated.observer import RunObserver
from fedpft.federated.pool import ClientPool
from fedpft.federated.sampling import Cohort, round_lr, sample_cohort
from fedpft.methods.base import Method
from fedpft.seeding import numpy_rng
from fedpft.tracking import Tracker


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """All that the next round depends on, besides config, data and the proxy's weights (in the method and the pool)."""

    rounds_done: int
    adapter: np.ndarray
    """(P,) float32."""
    proxy_version: int = 0
    """Grows by one with every change of the proxy's weights."""
    pending_bytes: int = 0
    """Proxy weights that go down with the next broadcast."""
    last_evaluation: Mapping[str, float] = field(default_factory=dict)
    """Metrics by model at the last evaluation; the last round always evaluates."""
    best: Mapping[str, float] = field(default_factory=dict)
    """`round` and metrics by model of the evaluation in which the plugged-in FM was best, the earliest of equals."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Runs rounds."""

    config: FederatedConfig
    seed: int
    client_sizes: np.ndarray
    """(num_clients,) examples of each client."""
    method: Method
    pool: ClientPool
    evaluate: Callable[[np.ndarray], Mapping[str, float]]
    """Adapter -> metrics by model, e.g. `{"fm": 0.8, "sub_fm": 0.7}`."""
    evaluation_interval: int
    tracker: Tracker
    observer: RunObserver
    checkpoint: Callable[[ServerState], None] = lambda state: None
    """Called with the state after every round, when all of the round was tracked."""

    def run(self, state: ServerState) -> ServerState:
        """Run the rounds that `state` has not done yet and return the final state."""
        while state.rounds_done < self.config.rounds:
            state = self.run_round(state)
        return state

    def run_round(self, state: ServerState) -> ServerState:
        """Run one round; see the module's picture."""
        start = time.perf_counter()
        round_index = state.rounds_done + 1
        # 1. sample
        rng = numpy_rng(self.seed, "cohort", round_index)
        cohort = sample_cohort(self.config.sampling, self.client_sizes, self.config.clients_per_round, rng)
        # 2. plan
        plan = self._plan(state, round_index)
        # 3. run the clients
        updates = self._run_clients(plan, cohort)
        fit_seconds = time.perf_counter() - start
        # 4. aggregate
        adapter = aggregate_adapters(updates, cohort, self.config.aggregation)
        record = self._record(round_index, plan, updates, state)
        state = replace(state, rounds_done=round_index, adapter=adapter, pending_bytes=0)
        # 5. re-align the proxy
        if plan.count_activations:
            state = self._after_round(state, updates, record)
        # 6. evaluate
        if round_index % self.evaluation_interval == 0 or round_index == self.config.rounds:
            evaluation_start = time.perf_counter()
            state = _with_evaluation(state, self.evaluate(state.adapter))
            record.update(state.last_evaluation)
            record["time/evaluate_seconds"] = time.perf_counter() - evaluation_start
        # 7. track
        record |= {"time/fit_seconds": fit_seconds, "seconds": time.perf_counter() - start}
        self.tracker.log_round(record)
        self.tracker.log_clients(round_index, [_client_row(update) for update in in_client_order(updates)])
        self.observer.round_finished(record)
        # 8. checkpoint
        self.checkpoint(state)
        return state

    def _plan(self, state: ServerState, round_index: int) -> RoundPlan:
        lr = round_lr(
            self.config.lr_schedule,
            self.config.lr,
            round_index=round_index,
            num_rounds=self.config.rounds,
            decay=self.config.lr_decay,
        )
        counts = self.method.wants_counts(round_index, self.config.rounds)
        return RoundPlan(round_index=round_index, lr=lr, adapter=state.adapter, count_activations=counts)

    def _run_clients(self, plan: RoundPlan, cohort: Cohort) -> list[ClientUpdate]:
        client_ids = list(cohort)
        self.observer.round_started(plan.round_index, self.config.rounds, client_ids)
        updates = []
        for update in self.pool.run(plan, client_ids):
            _check(update, plan)
            self.observer.client_finished(update)
            updates.append(update)
        assert sorted(update.client_id for update in updates) == client_ids, "a pool must return each client once"
        return updates

    def _after_round(self, state: ServerState, updates: list[ClientUpdate], record: dict[str, Any]) -> ServerState:
        start = time.perf_counter()
        counts = sum_counts(updates)
        assert counts is not None, "every client counts when the plan says so"
        change = self.method.after_round(state.rounds_done, state.adapter, counts)
        self.pool.replace_weights(change.weights)
        record.update(change.metrics)
        record["time/align_seconds"] = time.perf_counter() - start
        pending_bytes = sum(value.nbytes for value in change.weights.values())
        return replace(state, proxy_version=state.proxy_version + 1, pending_bytes=pending_bytes)

    def _record(
        self, round_index: int, plan: RoundPlan, updates: list[ClientUpdate], state: ServerState
    ) -> dict[str, Any]:
        return {
            "round": round_index,
            "clients": [update.client_id for update in in_client_order(updates)],
            "train_loss": mean_loss(updates),
            "lr": plan.lr,
            "comm/bytes_up": sum(update.num_bytes for update in updates),
            "comm/bytes_down": len(updates) * (plan.adapter.nbytes + state.pending_bytes),
            "proxy_version": state.proxy_version,
        }


def _with_evaluation(state: ServerState, evaluation: Mapping[str, float]) -> ServerState:
    is_best = not state.best or evaluation["fm"] > state.best["fm"]
    best = {"round": state.rounds_done, **evaluation} if is_best else state.best
    return replace(state, last_evaluation=evaluation, best=best)


def _check(update: ClientUpdate, plan: RoundPlan) -> None:
    where = f"round {plan.round_index}, client {update.client_id} (ran in {update.actor})"
    if update.adapter.shape != plan.adapter.shape:
        raise RuntimeError(f"{where}: adapter of shape {update.adapter.shape}, expected {plan.adapter.shape}")
    if not np.isfinite(update.adapter).all():
        raise RuntimeError(f"{where}: the adapter has NaN or infinite values; try a lower federated.lr")


def _client_row(update: ClientUpdate) -> dict[str, Any]:
    return {
        "client_id": update.client_id,
        "num_examples": update.num_examples,
        "loss": update.metrics["loss"],
        "seconds": update.metrics["seconds"],
        "actor": update.actor,
    }
