"""The driver with clients that fail, are refused, are absent or late."""

from dataclasses import replace

import numpy as np
import pytest

from fedpft.federated.messages import ClientFailure, ClientUpdate
from fedpft.federated.observer import SilentObserver
from fedpft.federated.sampling import draw_attendance
from fedpft.models.activations import ActivationCounts
from tests.unit.federated.test_driver import NUM_PARAMETERS, SIZES, START, FakeMethod, FakePool, driver, start


class Listening(SilentObserver):
    def __init__(self):
        self.finished, self.failed = [], []

    def client_finished(self, update):
        self.finished.append(update.client_id)

    def client_failed(self, failure):
        self.failed.append(failure)


class UnreliablePool(FakePool):
    """Fails for the clients given by round; `attempts` says how often each client was tried."""

    def __init__(self, failing=None, attempts=None, **kwargs):
        super().__init__(**kwargs)
        self.failing, self.attempts = failing or {}, attempts or {}

    def run(self, plan, client_ids):
        for update in super().run(plan, client_ids):
            attempts = self.attempts.get(update.client_id, 1)
            if update.client_id in self.failing.get(plan.round_index, ()):
                yield ClientFailure(
                    round_index=plan.round_index,
                    client_id=update.client_id,
                    attempts=attempts,
                    actor="actor-7",
                    node="there",
                    reason="ValueError: broken",
                    traceback="far away",
                )
            else:
                yield replace(update, attempts=attempts)


def run(pool=None, method=None, **federated):
    """Run all rounds of everybody (3 unless told) with equal weights; return the driver and the final state."""
    settings = {"sampling": "full", "clients_per_round": 5, "rounds": 3, "aggregation": "uniform"} | federated
    made, _ = driver(pool=pool, method=method, lr_schedule="constant", **settings)
    made = replace(made, observer=Listening())
    return made, made.run(start())


def mean_step(client_ids):
    """Return what a round adds to every parameter: the fake client adds (client id + 1) * lr."""
    return 0.1 * np.mean([client_id + 1 for client_id in client_ids])


def spoil_client(client_id, in_round, change):
    """Return a pool in which that client's update is changed in that round."""
    pool = FakePool(lambda u: change(u) if u.client_id == client_id and len(pool.plans) == in_round else u)
    return pool


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda u: replace(u, adapter=u.adapter * np.float32(np.nan)), "NaN or infinite"),
        (lambda u: replace(u, adapter=u.adapter[1:]), "expected float32 (6,)"),
        (lambda u: replace(u, num_examples=0), "trained on 0 examples"),
        (lambda u: replace(u, metrics=u.metrics | {"loss": np.inf}), "the loss is inf"),
        (lambda u: replace(u, client_id=4), "has answered before"),
        (lambda u: replace(u, client_id=99), "was not asked"),
    ],
)
def test_a_refused_update_drops_its_client_and_no_other(change, reason):
    """Client 4 has answered before client 3."""
    made, final = run(spoil_client(3, 2, change))
    (failure,) = made.observer.failed
    assert reason in failure.reason
    assert (failure.round_index, failure.actor) == (2, "fake")
    dropped = made.tracker.records[1]["dropped"]
    assert dropped == [3]
    assert made.tracker.records[1]["failures"] == [str(failure)]
    assert final.adapter == pytest.approx(
        np.full(NUM_PARAMETERS, 2 * mean_step(range(5)) + mean_step({0, 1, 2, 4})), rel=1e-5
    )


def test_refused_counts_are_left_out_of_the_sum():
    def spoil(update):
        wrong = ActivationCounts(zeros=(np.array([1, 2, 3]),), positions=np.array([4]))
        return replace(update, counts=wrong) if update.client_id == 1 else update

    method = FakeMethod(rounds_with_counts=(1,))
    made, _ = run(FakePool(spoil), method, rounds=2)
    ((_, _, counts),) = method.after
    assert (counts.zeros[0].tolist(), counts.positions.tolist()) == ([4, 8], [16])
    assert made.tracker.records[0]["dropped"] == [1]


def test_failed_clients_are_reported_recorded_and_left_out_of_the_mean():
    made, final = run(UnreliablePool(failing={2: [0, 4]}, attempts={0: 3, 1: 2, 4: 3}))
    assert [failure.client_id for failure in made.observer.failed] == [4, 0]
    ordinary, unusual, _ = made.tracker.records
    assert "dropped" not in ordinary
    assert unusual["clients"] == [1, 2, 3]
    assert unusual["dropped"] == [0, 4]
    assert unusual["failures"][0] == "round 2, client 4 (actor-7 on there, 3 attempts): ValueError: broken"
    assert unusual["retries"] == 2 + 1 + 2
    assert unusual["train_loss"] == pytest.approx(np.average([1, 2, 3], weights=SIZES[[1, 2, 3]]))
    assert unusual["comm/bytes_up"] == 3 * 4 * NUM_PARAMETERS
    assert unusual["comm/bytes_down"] == 5 * 4 * NUM_PARAMETERS, "the plan went to those that failed as well"
    assert final.adapter == pytest.approx(np.full(6, 2 * mean_step(range(5)) + mean_step([1, 2, 3])), rel=1e-5)


def test_weights_of_the_remaining_clients_are_renormalised():
    _, final = run(UnreliablePool(failing={1: [0, 1, 2]}), rounds=1, aggregation="weighted")
    assert final.adapter == pytest.approx(np.full(6, 0.1 * (40 * 4 + 50 * 5) / 90), rel=1e-5)


def test_with_fewer_than_min_clients_a_round_does_not_count_and_the_next_starts_where_it_did():
    method = FakeMethod(rounds_with_counts=(2,))
    made, final = run(UnreliablePool(failing={2: [0, 1, 2]}), method, min_clients=3)
    assert [record.get("counted", True) for record in made.tracker.records] == [True, False, True]
    assert made.pool.plans[2].adapter.tobytes() == made.pool.plans[1].adapter.tobytes()
    assert (method.after, final.proxy_version, final.uncounted_rounds) == ([], 0, 0)
    assert final.adapter == pytest.approx(np.full(6, 2 * mean_step(range(5))), rel=1e-5)
    made, _ = run(UnreliablePool(failing={2: [0, 1]}), min_clients=3)
    assert not any("counted" in record for record in made.tracker.records), "3 of 5 are enough"


def test_a_round_in_which_everyone_fails_has_no_loss_and_does_not_count():
    made, final = run(UnreliablePool(failing={2: range(5)}))
    record = made.tracker.records[1]
    assert (record["clients"], record["train_loss"], record["counted"]) == ([], None, False)
    assert [index for index, _ in made.tracker.clients] == [1, 3]
    assert final.adapter == pytest.approx(np.full(6, 2 * mean_step(range(5))), rel=1e-5)


@pytest.mark.parametrize(("rounds", "stops_after"), [(10, 5), (2, 2), (1, 1)])
def test_three_rounds_in_a_row_that_do_not_count_stop_the_run_and_say_why(rounds, stops_after):
    first = stops_after - min(3, rounds) + 1
    pool = UnreliablePool(failing={index: range(4) for index in (1, *range(first, 11)) if index != 2 or first < 3})
    made, _ = driver(pool=pool, sampling="full", clients_per_round=5, min_clients=2, rounds=rounds)
    with pytest.raises(RuntimeError) as error:
        made.run(start())
    assert [record["round"] for record in made.tracker.records] == list(range(1, stops_after + 1))
    assert str(error.value) == (
        f"{min(3, rounds)} rounds in a row did not count: the last one, round {stops_after}, has 1 good updates, "
        "4 dropped; federated.min_clients = 2; "
        f"round {stops_after}, client 0 (actor-7 on there, 1 attempt): ValueError: broken"
    )


def test_a_resumed_run_remembers_rounds_that_did_not_count():
    made, _ = driver(pool=UnreliablePool(failing={index: range(5) for index in range(1, 9)}), rounds=9)
    state = made.run_round(made.run_round(start()))
    assert state.uncounted_rounds == 2
    with pytest.raises(RuntimeError, match="3 rounds in a row"):
        driver(pool=UnreliablePool(failing={3: range(5)}), rounds=9)[0].run_round(state)


def test_absent_and_late_clients_are_recorded_and_never_trained():
    settings = {"dropout_ratio": 0.3, "over_selection": 1.5, "deadline": 60.0, "speed_sigma": 0.5, "rounds": 8}
    made, _ = driver(clients_per_round=3, min_clients=1, **settings)
    state, unusual = start(), set()
    for index in range(1, 9):
        state = made.run_round(state)
        found, record = draw_attendance(made.config, SIZES, 0, index), made.tracker.records[-1]
        assert sorted(made.pool.cohorts[-1]) == list(found.cohort)
        assert record.get("unavailable", []) == list(found.unavailable)
        assert record.get("stragglers", []) == list(found.stragglers)
        assert "dropped" not in record
        unusual |= record.keys()
    assert {"unavailable", "stragglers"} <= unusual


def test_a_round_without_any_client_does_not_count_and_keeps_what_is_still_to_be_sent():
    made, _ = driver(deadline=0.5)
    state = made.run_round(replace(start(), pending_bytes=11))
    (record,) = made.tracker.records
    assert (record["clients"], record["counted"], record["comm/bytes_down"]) == ([], False, 0)
    assert (state.pending_bytes, state.adapter.tobytes()) == (11, START.tobytes())


def test_a_round_that_draws_nobody_counts_changes_nothing_and_stops_no_run():
    method = FakeMethod(rounds_with_counts=range(1, 13))
    made, _ = driver(method=method, sampling="poisson", clients_per_round=1, rounds=12)
    final = made.run(start())
    empty = [plan.round_index for plan, cohort in zip(made.pool.plans, made.pool.cohorts, strict=True) if not cohort]
    assert {3, 4, 5} <= set(empty), "three in a row"
    assert final.rounds_done == 12
    adapters = [plan.adapter.tobytes() for plan in made.pool.plans] + [final.adapter.tobytes()]
    for record in made.tracker.records:
        assert "counted" not in record
        changed = adapters[record["round"]] != adapters[record["round"] - 1]
        assert changed == bool(record["clients"]) == (record["train_loss"] is not None)
    assert [index for index, _, _ in method.after] == [i for i in range(1, 13) if i not in empty]


def test_a_round_of_which_all_that_were_drawn_are_absent_does_not_count_whatever_drew_them():
    made, _ = driver(sampling="poisson", clients_per_round=5, deadline=0.5)
    assert made.run_round(start()).uncounted_rounds == 1


def test_records_hold_the_memory():
    made, _ = run()
    for record in made.tracker.records:
        assert record["memory/driver_rss_bytes"] > 10**7
        assert record["memory/object_store_bytes"] == 7


def test_a_pool_that_forgets_a_client_is_a_bug():
    class Forgetful(FakePool):
        def run(self, plan, client_ids):
            return super().run(plan, list(client_ids)[1:])

    with pytest.raises(AssertionError, match="each client once"):
        run(Forgetful())


def test_who_ran_a_client_how_often_is_no_part_of_its_update():
    update = ClientUpdate(client_id=1, num_examples=2, adapter=START, metrics={})
    assert update == replace(update, actor="other", node="other", attempts=3)
