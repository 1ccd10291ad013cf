"""Actors that die, raise, hang or lose their data: the run goes on, and its result is the one without faults.

Faults are files in a folder: `ROUND-CLIENT.NUMBER` holds what happens when that client starts to train. The file goes
away before it happens, so that every fault happens once.
"""

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fedpft.config import PoolConfig
from fedpft.federated.client import LocalClient
from fedpft.federated.messages import RoundPlan
from fedpft.federated.pool import SequentialPool

pytest.importorskip("fedpft.simulation.pool.ray_pool", reason="Ray is not installed", exc_type=ImportError)
import ray

from fedpft.simulation.pool import crew, waiting
from fedpft.simulation.pool.ray_pool import RayClientPool
from tests.simulation.faulty import PACKAGE, PLAN, faulty_actor, lost_references, run


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Callable[..., None]:
    """Return a function that lays faults for a client in a round (or for `weights`)."""
    folder = tmp_path_factory.mktemp("faults")

    def lay(where: str, *kinds: str) -> None:
        for number, kind in enumerate(kinds):
            (folder / f"{where}.{number}").write_text(kind)

    lay.folder = folder
    return lay


@pytest.fixture(scope="module")
def shared_pool(local_ray, faults) -> Iterator[RayClientPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "ClientActor", faulty_actor(faults.folder))
        made = RayClientPool(PoolConfig(actors=2, max_retries=1), clients_per_round=4)
    yield made
    made.close()


@pytest.fixture
def pool(shared_pool, faults, monkeypatch) -> Iterator[RayClientPool]:
    """Two actors that every test finds, and leaves, sound; no fault is left over, and every client is sent alone."""
    monkeypatch.setattr(waiting, "BATCH_SECONDS", 0)
    config = shared_pool._config
    yield shared_pool
    shared_pool._config = config
    assert list(faults.folder.iterdir()) == []
    assert shared_pool.num_actors == 2


@pytest.fixture(scope="module")
def expected() -> bytes:
    """Return the adapter of the run without faults."""
    return run(SequentialPool())[0]


def numbers(pool):
    return [actor.number for actor in pool._crew.actors]


def pids(pool):
    return [ray.get(actor.handle.pid.remote()) for actor in pool._crew.actors]


@pytest.mark.cluster
def test_without_faults_the_run_is_the_sequential_one(pool, expected):
    adapter, records, failures = run(pool)
    assert adapter == expected
    assert failures == []
    assert not any(record.keys() & {"dropped", "retries", "failures", "counted"} for record in records)
    for record in records:
        assert record["memory/actor_rss_bytes_max"] > 10**8
        assert record["memory/object_store_bytes"] >= 0


MORE_FAULTS = [pytest.param(fault, marks=pytest.mark.cluster) for fault in ("fail", "hang")]


def survive(pool, faults, expected, fault):
    """Run with a fault of the first client in round 3; assert that it changes nothing, and return the records."""
    before = numbers(pool)
    if fault == "hang":
        pool._config = replace(pool._config, client_timeout_seconds=4)
    faults("3-0", fault)
    adapter, records, failures = run(pool)
    assert adapter == expected
    assert failures == []
    assert max(numbers(pool)) == max(before) + 1, "one actor was replaced"
    return records


@pytest.mark.parametrize("fault", ["kill", *MORE_FAULTS])
def test_a_fault_that_passes_changes_no_bit(pool, faults, expected, fault):
    """The third round needs both earlier changes of the proxy, which the fresh actor has only been told of."""
    records = survive(pool, faults, expected, fault)
    assert [record.get("retries", 0) for record in records] == [0, 0, 1]


@pytest.mark.cluster
def test_an_actor_that_dies_while_it_takes_over_weights_is_replaced_and_changes_no_bit(pool, faults, expected):
    before = numbers(pool)
    faults("weights", "kill")
    adapter, records, _ = run(pool)
    assert adapter == expected
    assert not any("retries" in record for record in records), "no client was in training"
    assert len(set(before) & set(numbers(pool))) == 1


@pytest.mark.cluster
def test_a_client_that_always_fails_is_dropped_and_reported_and_the_others_are_aggregated(pool, faults, monkeypatch):
    faults("2-3", "fail", "kill")
    adapter, records, (failure,) = run(pool)
    assert [record.get("dropped") for record in records] == [None, [3], None]
    assert records[1]["clients"] == [0, 1, 2]
    assert records[1]["retries"] == 1
    assert (failure.round_index, failure.client_id, failure.attempts) == (2, 3, 2)
    assert failure.actor == f"actor-{max(numbers(pool)) - 1}", "the fresh one, which is gone by now"
    assert failure.node == platform.node()
    assert failure.reason.startswith("ActorDiedError: The actor died")
    assert "SIGSEGV" in failure.traceback
    fit = LocalClient.fit

    def fit_but_for_client_3(self, plan, client_id):
        if (plan.round_index, client_id) == (2, 3):
            raise ValueError("broken\nin many lines")
        return fit(self, plan, client_id)

    monkeypatch.setattr(LocalClient, "fit", fit_but_for_client_3)
    without, sequential_records, (sequential_failure,) = run(SequentialPool(max_retries=1))
    assert adapter == without
    assert sequential_records[1]["dropped"] == [3]
    assert (sequential_failure.attempts, sequential_failure.reason) == (2, "ValueError: broken")
    assert "fit_but_for_client_3" in sequential_failure.traceback


@pytest.fixture
def batches(monkeypatch):
    """Put all clients of a round into one batch, as soon as it is known how long they take."""
    monkeypatch.setattr(waiting, "BATCH_SECONDS", 1000)
    monkeypatch.setattr(waiting, "SHARES_PER_ACTOR", 0.1)


@pytest.mark.parametrize("fault", [pytest.param("kill", marks=pytest.mark.cluster), *MORE_FAULTS])
def test_a_fault_in_a_batch_is_no_attempt_of_anybody_and_changes_no_bit(pool, faults, expected, batches, fault):
    records = survive(pool, faults, expected, fault)
    assert not any("retries" in record for record in records), "nobody knows whose fault it was"


@pytest.mark.cluster
def test_a_client_that_always_fails_in_a_batch_is_dropped_and_no_other(pool, faults, batches):
    faults("2-3", "fail", "fail", "fail")
    _, records, (failure,) = run(pool)
    assert [record.get("dropped") for record in records] == [None, [3], None]
    assert (failure.client_id, failure.attempts, failure.reason) == (3, 2, "ValueError: broken")
    assert records[1]["retries"] == 1


@pytest.mark.cluster
def test_a_lost_plan_and_a_lost_package_are_sent_again_and_change_no_bit(pool, monkeypatch):
    """The plan is lost, so its actor is replaced; then the package is lost, so the first replacement cannot start."""
    pool.broadcast(PACKAGE)
    (expected,) = pool.run(PLAN, [0])
    before, real_put, puts = numbers(pool), ray.put, []
    lost_plan, pool._crew._package_ref = lost_references(PLAN, PACKAGE)

    def put(value):
        puts.append(type(value))
        return lost_plan if len(puts) == 1 else real_put(value)

    monkeypatch.setattr(ray, "put", put)
    (update,) = pool.run(PLAN, [0])
    assert update.adapter.tobytes() == expected.adapter.tobytes()
    assert (update.attempts, update.actor) == (2, f"actor-{max(before) + 2}")
    assert puts == [RoundPlan, RoundPlan, type(PACKAGE), dict]


@pytest.mark.cluster
def test_an_actor_that_died_between_rounds_is_replaced(pool, expected):
    before = numbers(pool)
    pool.broadcast(PACKAGE)
    os.kill(pids(pool)[0], signal.SIGKILL)
    assert run(pool)[0] == expected
    assert numbers(pool) == [before[1], max(before) + 1]


@pytest.mark.cluster
def test_an_actor_above_its_memory_limit_is_replaced_between_clients_and_changes_no_bit(pool, faults, expected):
    before = numbers(pool)
    held = pool.memory()["actor_rss_bytes_max"]
    pool._config = replace(pool._config, max_actor_memory_gigabytes=(held + 200e6) / 1e9)
    faults("1-2", "bloat")
    adapter, records, failures = run(pool)
    assert adapter == expected
    assert failures == []
    assert not any("retries" in record for record in records)
    assert len(set(before) & set(numbers(pool))) == 1
    assert pool.memory()["actor_rss_bytes_max"] < held + 200e6


def test_a_round_that_nobody_listens_to_any_more_leaves_no_client_training(shared_pool, faults, monkeypatch):
    """Its actor is not replaced before the next round."""
    monkeypatch.setattr(waiting, "BATCH_SECONDS", 0)  # client 0 does not wait behind the one that hangs
    shared_pool.broadcast(PACKAGE)
    faults("1-1", "hang")
    updates = shared_pool.run(PLAN, [1, 0])
    assert next(updates).client_id == 0
    updates.close()
    assert not shared_pool._crew.is_training
    assert shared_pool.num_actors == 1


def test_closing_leaves_no_process_behind(shared_pool):
    """The last test with these actors."""
    found = [psutil.Process(pid) for pid in pids(shared_pool)]
    assert found
    shared_pool.close()
    gone, alive = psutil.wait_procs(found, timeout=300)
    assert (len(gone), alive) == (len(found), [])
    assert shared_pool.num_actors == 0


@pytest.mark.cluster
def test_the_pool_goes_on_without_a_node_that_left(local_ray):
    """In a process of its own: a process joins one cluster at a time."""
    script = Path(__file__).with_name("node_leaves.py")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["attempts"] == {"0": 1, "1": 2}
    assert found["actors"] == [2, 1]
    assert found["warnings"] == ["pool: goes on with 1 actor(s)"]
    sequential = SequentialPool()
    sequential.broadcast(PACKAGE)
    expected = {str(u.client_id): u.adapter.tobytes().hex() for u in sequential.run(PLAN, [0, 1])}
    assert found["adapters"] == expected
