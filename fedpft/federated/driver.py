"""The round loop, the server's side of federated learning.

    state (global adapter, proxy version)
      |  1. sample the cohort; simulate who is absent or late
      |  2. plan: adapter, learning rate, whether to count activations
      v
    pool.run(plan) ---> clients train in parallel, updates arrive in any order
      |  3. wait for an update or a failure of every client of the cohort, refuse what would spoil the aggregate
      |  4. aggregate, in the order in which clients start: each update as soon as its turn comes; the server's step
      |  5. every t rounds: the method re-aligns the proxy; changed weights go to the pool
      |  6. every e rounds and at the end: evaluate
      |  7. track
      |  8. checkpoint: hand the state to whoever keeps it
      v
    state of the next round

The driver waits for the whole cohort in step 3; clients wait for the driver in steps 4 to 8. It knows the pool and the
method by their protocols only.

A client that failed or was refused is dropped from the round: the others' weights are renormalised. With fewer than
`min_clients` good updates, or than the aggregator needs, the round does not count: adapter, proxy and what the server
remembers stay as they were and the next round begins.
A round for which nobody was drawn counts, although it changes nothing: it is what the law of `poisson` says.

With secure aggregation steps 3 and 4 are framed by two more: clients agree on masks before they train, and help to take
them off the sum afterwards. A round in which too few are there for that does not count; with differential privacy it
ends the run, because a round that releases nothing would show how many came.

With differential privacy of clients (`privacy.kind = client`) step 4 is one noised release, and every round counts,
whoever came: also the noise on nothing is released and accounted for. With that of examples clients add noise in step
3, and nothing else is different. Either run ends before a round that would pass the budget.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedpft.config import FederatedConfig
from fedpft.data.partition import Partition
from fedpft.federated.adversary.clients import Adversaries
from fedpft.federated.aggregate import Aggregation, in_client_order
from fedpft.federated.check import check
from fedpft.federated.early_stop import EarlyStop
from fedpft.federated.exchange import Exchange
from fedpft.federated.masked_aggregation import MaskedAggregation
from fedpft.federated.memory import MemoryWatchdog
from fedpft.federated.messages import ClientFailure, ClientUpdate, RoundPlan
from fedpft.federated.observer import RunObserver
from fedpft.federated.pool import ClientPool
from fedpft.federated.private_aggregation import PrivateAggregation
from fedpft.federated.reticence import without_reason
from fedpft.federated.round_record import client_row, round_record, why_stopped
from fedpft.federated.sampling import Attendance, Cohort, draw_attendance, longest_first, round_lr
from fedpft.federated.secure_aggregation import SecureAggregation, SecureRound
from fedpft.federated.server_rule import ServerRule
from fedpft.federated.spending import actor_utilisation, add_round
from fedpft.interrupt import RunStoppedError
from fedpft.methods.base import Method
from fedpft.metrics.table import Goal, is_better
from fedpft.models.activations import ActivationCounts
from fedpft.privacy.client_level import ClientLevel
from fedpft.privacy.guarantee import Guarantee, PrivacyState
from fedpft.tracking.trackers import Tracker

MAX_UNCOUNTED_ROUNDS = 3
"""Rounds in a row that may fail to count (all, in a shorter run) before the run stops."""


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """All that the next round depends on, besides config, data and the proxy's weights (in the method and the pool)."""

    rounds_done: int
    adapter: np.ndarray
    """(P,) float32."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the server's rule remembers, by name, and of its clients."""
    proxy_version: int = 0
    """Grows by one with every change of the proxy's weights."""
    pending_bytes: int = 0
    """Proxy weights that go down with the next broadcast."""
    last_evaluation: Mapping[str, Any] = field(default_factory=dict)
    """What `Driver.evaluate` returned last; the last round always evaluates."""
    uncounted_rounds: int = 0
    """Rounds in a row, up to the last one done, that did not count."""
    best: Mapping[str, Any] = field(default_factory=dict)
    """`round` and primary metric by model of the evaluation with the best plugged-in FM, the earliest of equals."""
    stop: Mapping[str, Any] = field(default_factory=dict)
    """What `Driver.stop` remembers; with a `reason` the run is over."""
    client_losses: Mapping[str, float] = field(default_factory=dict)
    """Client id -> training loss the last time that it trained; empty unless the sampling asks for it."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """What all rounds so far cost; see `spending.add_round`."""
    privacy: PrivacyState = field(default_factory=dict)
    """What was released so far, and the clip of the next round; empty without differential privacy."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Runs rounds."""

    config: FederatedConfig
    seed: int
    """Of what is drawn of the clients (`Config.client_seed`)."""
    partition: Partition
    """How many examples each client has."""
    guarantee: Guarantee | None = None
    """Of differential privacy; None: there is none."""
    public_counts: Callable[[np.ndarray], ActivationCounts] | None = None
    """Adapter -> the proxy's activation counts on public data, which replace the clients'."""
    num_neurons: Sequence[int]
    """Neurons of each FFN whose activations the clients count."""
    method: Method
    pool: ClientPool
    rule: ServerRule = field(default_factory=ServerRule)
    """From the updates to the next adapter."""
    packed: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda weights: weights
    """Changed weights of the proxy -> the same as clients hold them."""
    exchange: Exchange = field(default_factory=Exchange)
    """What travels besides the adapter, or of it."""
    evaluate: Callable[[np.ndarray], Mapping[str, Any]]
    """Adapter -> what goes into the record, as JSON: `{"fm": 0.8, "sub_fm": 0.7}`, perhaps more."""
    evaluation_interval: int
    goal: Goal = "max"
    """Which way `fm` is better."""
    stop: EarlyStop | None = None
    """Ends the run by its evaluations."""
    secure: SecureAggregation | None = None
    """None: the server sees each update."""
    absent: frozenset[int] = frozenset()
    """Clients that are never there, as if they had not been drawn: canaries whose coin says so."""
    adversaries: Adversaries | None = None
    """Clients whose updates are replaced on the way."""
    tracker: Tracker
    observer: RunObserver
    is_strict: bool = False
    """Whether reasons of failures are kept back."""
    watchdog: MemoryWatchdog = field(default_factory=MemoryWatchdog)
    checkpoint: Callable[[ServerState], None] = lambda state: None
    """Called with the state after every round, when all of the round was tracked."""

    def run(self, state: ServerState) -> ServerState:
        """Run the rounds that are left before an early stop or the end of the budget; return the final state.

        Raises:
            RunStoppedError: three rounds in a row did not count; the message names the last failure.

        """
        while not self._is_over(state):
            state = self.run_round(state)
        return state

    def run_round(self, state: ServerState) -> ServerState:
        """Run one round; see the module's picture."""
        start = time.perf_counter()
        round_index = state.rounds_done + 1
        # 1. sample
        attendance = self._draw(state, round_index)
        # 2. plan
        aligns = self.method.wants_counts(round_index, self.config.rounds)
        plan = self._plan(state, round_index, count=aligns and self.public_counts is None)
        plan = self.exchange.complete(plan, attendance.cohort, state.arrays)
        # 3. run the clients
        secure = self._agree_on_masks(plan, attendance, state)
        aggregation, failures = self._run_clients(plan, attendance, state, secure)
        fit_seconds = time.perf_counter() - start
        if secure is not None and secure.why_not is not None and self._released_with is not None:
            raise RunStoppedError(
                f"round {round_index}: {secure.why_not}; under privacy.kind = client nothing is released"
            )
        # 4. aggregate
        is_good = attendance.is_empty or len(aggregation.reports) >= self._fewest_updates
        is_good = is_good and (secure is None or secure.opened is not None)
        private = aggregation if isinstance(aggregation, PrivateAggregation) else None
        counted = is_good or private is not None  # noise is released, whoever came
        has_moved = private is not None or bool(counted and aggregation.reports)
        if has_moved:
            adapter, arrays = aggregation.next_adapter()
            trained = sorted(report.client_id for report in aggregation.reports)
            arrays = {**arrays, **self.exchange.remembered(state.arrays, trained, round_index)}
        else:
            adapter, arrays = state.adapter, state.arrays
            self.exchange.forget(round_index)
        record = self._record(plan, attendance, aggregation, failures, state)
        record |= {} if secure is None else secure.record(record, aggregation.reports)
        record |= {} if counted else {"counted": False}
        record |= actor_utilisation(aggregation.reports, self.pool.num_actors, fit_seconds)
        pending_bytes = 0 if attendance.cohort else state.pending_bytes
        uncounted_rounds = 0 if aggregation.reports and is_good else state.uncounted_rounds + (not is_good)
        state = replace(
            state,
            rounds_done=round_index,
            adapter=adapter,
            arrays=arrays,
            pending_bytes=pending_bytes,
            uncounted_rounds=uncounted_rounds,
            client_losses=self._losses(state, aggregation),
            privacy=private.after_release(record) if private else state.privacy,
        )
        if self.guarantee is not None:
            state = self._account(self.guarantee, state, attendance, record)
        # 5. re-align the proxy
        if has_moved and aligns:
            state = self._after_round(state, aggregation, record)
        # 6. evaluate
        if round_index % self.evaluation_interval == 0 or self._is_over(state):
            evaluation_start = time.perf_counter()
            state = _with_evaluation(state, self.evaluate(state.adapter), self.goal)
            if self.stop and not self._is_over(state):
                state = replace(state, stop=self.stop.watch(state.stop, round_index, state.last_evaluation))
            record.update(state.last_evaluation)
            record |= {"stopped": state.stop["reason"]} if "reason" in state.stop else {}
            record["time/evaluate_seconds"] = time.perf_counter() - evaluation_start
        # 7. track
        record |= self.watchdog.measure(self.pool.memory())
        record |= {"time/fit_seconds": fit_seconds, "seconds": time.perf_counter() - start}
        state = replace(state, spent=add_round(state.spent, record))
        self.tracker.log_round(record)
        if aggregation.reports:
            rows = [client_row(report) for report in in_client_order(aggregation.reports)]
            self.tracker.log_clients(round_index, rows)
        self.observer.round_finished(record)
        # 8. checkpoint
        self.checkpoint(state)
        if not is_good and state.uncounted_rounds >= min(MAX_UNCOUNTED_ROUNDS, self.config.rounds):
            raise RunStoppedError(why_stopped(self.config, self.rule.min_updates, state.uncounted_rounds, record))
        return state

    def _draw(self, state: ServerState, round_index: int) -> Attendance:
        losses = {int(client): loss for client, loss in state.client_losses.items()}
        return draw_attendance(self.config, self.partition.sizes, self.seed, round_index, losses).without(self.absent)

    def _account(
        self, guarantee: Guarantee, state: ServerState, attendance: Attendance, record: dict[str, Any]
    ) -> ServerState:
        """Return the state in which the round is paid for, and the run is over if the next one cannot be."""
        privacy = guarantee.spent(state.privacy, attendance.begun)
        record["privacy/epsilon"] = guarantee.epsilon(privacy)
        state = replace(state, privacy=privacy)
        if self._is_over(state):
            return state
        clients = self._draw(state, state.rounds_done + 1).begun
        if guarantee.affords(privacy, clients):
            return state
        return replace(state, stop={"reason": "privacy", "why": guarantee.why_over(privacy, clients)})

    def _losses(self, state: ServerState, aggregation: Aggregation) -> Mapping[str, float]:
        if self.config.sampling != "power_of_choice":
            return {}
        new = {str(report.client_id): report.metrics["loss"] for report in in_client_order(aggregation.reports)}
        return {**state.client_losses, **new}

    def _plan(self, state: ServerState, round_index: int, *, count: bool) -> RoundPlan:
        lr = round_lr(
            self.config.lr_schedule,
            self.config.lr,
            round_index=round_index,
            num_rounds=self.config.rounds,
            decay=self.config.lr_decay,
        )
        return RoundPlan(
            round_index=round_index,
            lr=lr,
            adapter=state.adapter,
            count_activations=count,
            tuned=self.rule.tuned(round_index),
        )

    def _agree_on_masks(self, plan: RoundPlan, attendance: Attendance, state: ServerState) -> SecureRound | None:
        """Have all clients that begin the round agree, also the late ones; None: there is nobody, or no need."""
        if self.secure is None or not attendance.begun:
            return None
        clip = None if self._released_with is None else state.privacy["clip"]
        return SecureRound(self.secure, self.pool, plan.round_index, attendance.begun, clip)

    def _run_clients(
        self, plan: RoundPlan, attendance: Attendance, state: ServerState, secure: SecureRound | None
    ) -> tuple[Aggregation, list[ClientFailure]]:
        """Return what was made of the good updates, and a failure for each client without one."""
        cohort = attendance.cohort
        self.observer.round_started(plan.round_index, self.config.rounds, list(cohort))
        order = longest_first(cohort, self.partition.sizes)
        failures: list[ClientFailure] = []
        if secure is not None:
            plan = replace(plan, masking=secure.masking)
            failures = [self._failed(failure) for failure in secure.failures if failure.client_id in cohort]
            order = [client_id for client_id in order if client_id in secure.members]
        aggregation, num_failed = self._aggregation(order, cohort, plan, state, secure), len(failures)
        awaited = set(order)
        asked, keeps_state = self.exchange.asked(plan), self.exchange.variates is not None
        outcomes = self.pool.run(self.exchange.sent(plan), order)
        for outcome in outcomes if self.adversaries is None else self.adversaries.attack(asked, outcomes):
            checked = check(outcome, asked, awaited=awaited, num_neurons=self.num_neurons, keeps_state=keeps_state)
            awaited.discard(checked.client_id)
            if isinstance(checked, ClientUpdate):
                checked = self.exchange.received(checked, plan)
                self.observer.client_finished(checked)
                aggregation.add(checked)
            else:
                aggregation.drop(checked.client_id)
                failures.append(self._failed(checked))
        num_answers = len(aggregation.reports) + len(failures) - num_failed
        assert num_answers == len(order), "a pool must return each client once"
        if secure is not None:
            survivors, num_known = {report.client_id for report in aggregation.reports}, len(secure.failures)
            secure.open(survivors, self.num_neurons if plan.count_activations else None)
            failures += [self._failed(failure) for failure in secure.failures[num_known:]]
            if secure.why_not is not None and not self.is_strict:
                self.observer.note(f"round {plan.round_index}: {secure.why_not}")
        return aggregation, failures

    def _failed(self, failure: ClientFailure) -> ClientFailure:
        failure = without_reason(failure) if self.is_strict else failure
        self.observer.client_failed(failure)
        return failure

    def _aggregation(
        self, order: list[int], cohort: Cohort, plan: RoundPlan, state: ServerState, secure: SecureRound | None
    ) -> Aggregation:
        if (guarantee := self._released_with) is not None:
            of_privacy = (guarantee, state.privacy, self.num_neurons, secure)
            return PrivateAggregation(plan, order, cohort, self.rule, state.arrays, *of_privacy)
        if secure is not None:
            return MaskedAggregation(plan, order, cohort, self.rule, state.arrays, secure)
        return Aggregation(plan, order, cohort, self.config.aggregation, self.rule, state.arrays)

    def _is_over(self, state: ServerState) -> bool:
        return state.rounds_done >= self.config.rounds or "reason" in state.stop

    def _after_round(self, state: ServerState, aggregation: Aggregation, record: dict[str, Any]) -> ServerState:
        start = time.perf_counter()
        counts = aggregation.counts if self.public_counts is None else self.public_counts(state.adapter)
        assert counts is not None, "every client counts when the plan says so"
        change = self.method.after_round(state.rounds_done, state.adapter, counts)
        pending_bytes = self.pool.replace_weights(self.packed(change.weights))
        record.update(change.metrics)
        record["time/align_seconds"] = time.perf_counter() - start
        return replace(state, proxy_version=state.proxy_version + 1, pending_bytes=pending_bytes)

    def _record(
        self,
        plan: RoundPlan,
        attendance: Attendance,
        aggregation: Aggregation,
        failures: Sequence[ClientFailure],
        state: ServerState,
    ) -> dict[str, Any]:
        adversaries = self.adversaries.clients if self.adversaries else ()
        bytes_down = self.exchange.bytes_down(plan, attendance.cohort) + len(attendance.cohort) * state.pending_bytes
        record = round_record(plan, attendance, aggregation, failures, adversaries)
        return {**record, "comm/bytes_down": bytes_down, "proxy_version": state.proxy_version}

    @property
    def _released_with(self) -> ClientLevel | None:
        """The guarantee by which the server clips, sums and adds noise; None: it gets updates that may be released."""
        return self.guarantee if isinstance(self.guarantee, ClientLevel) else None

    @property
    def _fewest_updates(self) -> int:
        return max(self.config.min_clients, self.rule.min_updates)


def _with_evaluation(state: ServerState, evaluation: Mapping[str, Any], goal: Goal) -> ServerState:
    is_best = not state.best or is_better(evaluation["fm"], state.best["fm"], goal)
    values = {name: evaluation[name] for name in ("fm", "sub_fm") if name in evaluation}
    best = {"round": state.rounds_done, **values} if is_best else state.best
    return replace(state, last_evaluation=evaluation, best=best)
