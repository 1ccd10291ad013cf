"""Secure aggregation in actors: what comes back to the driver is noise, and the sum is the one of no actors at all."""

import os
import pickle
import signal
from dataclasses import replace

import numpy as np
import pytest

from fedpft.config import PoolConfig
from fedpft.federated.messages import ClientUpdate
from fedpft.federated.pool import SequentialPool

pytest.importorskip("fedpft.simulation.pool.ray_pool", reason="Ray is not installed", exc_type=ImportError)

from fedpft.simulation.pool import crew, waiting
from fedpft.simulation.pool.ray_pool import RayClientPool
from tests.simulation.faulty import faulty_actor
from tests.unit.federated.test_secure_rounds import SECURE, START, driver, first, fixed_point_mean

PLANTED = 2
PLANT = np.random.default_rng(3).normal(size=len(START)).astype(np.float32)
"""What client 2's training comes to, whatever it trained on."""


class PlantedPool(SequentialPool):
    """The same plant without actors."""

    def _fit(self, plan, client_id):
        fit = self._client.fit
        self._client.fit = lambda plan, client: (
            replace(fit(plan, client), adapter=plan.adapter + PLANT) if client == PLANTED else fit(plan, client)
        )
        try:
            return super()._fit(plan, client_id)
        finally:
            self._client.fit = fit


def planting_actor(folder, plant, planted):
    class PlantingActor(faulty_actor(folder)):
        def fit_client(self, plan, client_id):
            update = super().fit_client(plan, client_id)
            return replace(update, adapter=plan.adapter + plant) if client_id == planted else update

        def answer(self, step, groups, inbox):
            for file in sorted(folder.glob(f"{step.step}-{step.round_index}.*"))[:1]:
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().answer(step, groups, inbox)

    return PlantingActor


@pytest.fixture(scope="module")
def shared_pool(local_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "ClientActor", planting_actor(folder, PLANT, PLANTED))
        patch.setattr(waiting, "BATCH_SECONDS", 0)
        made = RayClientPool(PoolConfig(actors=2, max_retries=1), clients_per_round=4)
        made.faults = folder
        yield made
    made.close()


@pytest.fixture
def arrived(shared_pool, monkeypatch):
    """Return a list of all that actors send to the driver's process from now on."""
    results, wait = [], shared_pool._crew.wait

    def listening():
        ended = wait()
        results.extend([] if ended is None else [ended[2]])
        return ended

    monkeypatch.setattr(shared_pool._crew, "wait", listening)
    return results


def arrays(results):
    updates = [update for result in results for update in result[0] if isinstance(update, ClientUpdate)]
    return [array for u in updates for array in (u.adapter, u.masked) if array is not None and array.size]


def traces(results, fixed):
    """Return where the planted change can be told from what arrived: as bytes, or by its correlation with an array."""
    change = (START + PLANT).astype(np.float64) - START
    integers = np.trunc(change * 2.0**fixed.fraction_bits).astype(np.int64)
    forms = [START + PLANT, PLANT, change, integers, integers * 5, integers * -5, fixed.encode(change, 5)]
    raw = b"".join(pickle.dumps(result) for result in results)
    as_bytes = [form for form in forms if any(form.tobytes()[i : i + 32] in raw for i in range(0, 32 * 40, 32))]
    about = [a[: len(START)] - (START if a.dtype == np.float32 else 0) for a in arrays(results)]
    signed = [(a.view(np.int64) if a.dtype == np.uint64 else a).astype(np.float64) for a in about]
    related = [a for a in signed if abs(np.corrcoef(a, change)[0, 1]) > 5 / np.sqrt(len(START))]
    return len(as_bytes) + len(related)


def test_the_driver_gets_no_update_in_the_clear_and_the_right_sum(shared_pool, arrived):
    made = driver(shared_pool, rounds=1)
    final = made.run(first(made))
    assert len(arrays(arrived)) == 4
    assert traces(arrived, SECURE.fixed_point(4)) == 0
    sequential = driver(PlantedPool(), rounds=1)
    assert final.adapter.tobytes() == sequential.run(first(sequential)).adapter.tobytes()
    arrived.clear()
    plain = driver(shared_pool, secure=None, rounds=1)
    bare = plain.run(first(plain)).adapter
    assert traces(arrived, SECURE.fixed_point(4)) >= 2, "the same search finds the plant where nothing is masked"
    updates = {update.client_id: update for result in arrived for update in result[0]}
    assert final.adapter.tobytes() == fixed_point_mean(made, updates, begun=4).tobytes()
    assert final.adapter == pytest.approx(bare, abs=1e-6)


@pytest.mark.parametrize(
    ("faults", "dropped"),
    [
        pytest.param({"1-1.0": "fail"}, [1], id="a client drops out"),
        pytest.param({"unmask-1.0": "kill"}, [], id="an actor dies over shares", marks=pytest.mark.cluster),
    ],
)
def test_faults_in_a_pool_cost_the_client_that_fails_and_no_bit_of_the_others(
    shared_pool, monkeypatch, faults, dropped
):
    class Dropping(PlantedPool):
        def _fit(self, plan, client_id):
            return super()._fit(plan, client_id) if client_id not in dropped else 1 / 0

    monkeypatch.setattr(shared_pool, "_config", replace(shared_pool._config, max_retries=0 if dropped else 1))
    for name, fault in faults.items():
        (shared_pool.faults / name).write_text(fault)
    made, sequential = driver(shared_pool), driver(Dropping())
    final = made.run_round(first(made))
    assert list(shared_pool.faults.iterdir()) == []
    assert made.tracker.records[0].get("dropped", []) == dropped
    assert final.adapter.tobytes() == sequential.run_round(first(sequential)).adapter.tobytes()
