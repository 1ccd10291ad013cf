import numpy as np
import pytest

from fedpft.federated.client import LocalClient
from fedpft.federated.local_tuning import LocalTuningModule
from fedpft.federated.messages import ClientFailure, ClientUpdate, RoundPlan
from fedpft.federated.pool import SequentialPool
from fedpft.models.lora import get_adapter
from fedpft.models.weights import unpack_model
from tests.tiny import tiny_package

PACKAGE = tiny_package()
PLAN = RoundPlan(round_index=1, lr=1e-2, adapter=get_adapter(unpack_model(PACKAGE.proxy)), count_activations=True)
CHANGE = {name: 1.5 * w for name, w in PACKAGE.proxy.weights.items() if "layer.1.intermediate" in name}


def run(max_retries=2, client_ids=(0, 1, 2)):
    pool = SequentialPool(max_retries)
    pool.broadcast(PACKAGE)
    pool.replace_weights(CHANGE)
    return list(pool.run(PLAN, client_ids))


def bits(updates):
    return [(u.client_id, u.adapter.tobytes(), u.metrics["loss"], u.counts.zeros[0].tolist()) for u in updates]


@pytest.fixture
def fail(monkeypatch):
    """Return a function that makes the given steps of a run (1-based) raise when the gradients are there."""

    def install(*calls, error=ValueError):
        made = iter(range(1, 1000))
        step = LocalTuningModule.training_step

        def failing_step(self, *args):
            loss = step(self, *args)
            if next(made) in calls:
                loss.backward()
                raise error("broken\nin many lines")
            return loss

        monkeypatch.setattr(LocalTuningModule, "training_step", failing_step)

    return install


def test_a_fault_that_passes_changes_no_bit(fail):
    """Client 0 takes 2 steps, client 1 takes 3: its second step fails, then the first of the next attempt."""
    expected = bits(run())
    fail(4, 5)
    updates = run()
    assert bits(updates) == expected
    assert [update.attempts for update in updates] == [1, 3, 1]


def test_a_client_that_always_fails_is_a_failure_and_harms_no_other(fail):
    expected = bits(run(client_ids=(0, 2)))
    fail(3, 4)
    first, failure, last = run(max_retries=1)
    assert isinstance(first, ClientUpdate)
    assert bits([first, last]) == expected
    assert isinstance(failure, ClientFailure)
    assert (failure.round_index, failure.client_id, failure.attempts, failure.actor) == (1, 1, 2, "driver")
    assert failure.reason == "ValueError: broken"
    assert "failing_step" in failure.traceback


def test_without_retries_there_is_one_attempt(fail):
    fail(1)
    failure, _ = run(max_retries=0, client_ids=(0, 1))
    assert failure.attempts == 1


def test_an_interrupt_ends_the_run(fail):
    fail(1, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run()


def test_a_fresh_copy_has_all_changes_of_weights(monkeypatch):
    seen = []
    monkeypatch.setattr(LocalClient, "fit", lambda self, plan, client_id: seen.append(self) or 1 / 0)
    pool = SequentialPool(max_retries=1)
    pool.broadcast(PACKAGE)
    other = {name: 2 * w for name, w in PACKAGE.proxy.weights.items() if "layer.2.intermediate" in name}
    pool.replace_weights(CHANGE)
    pool.replace_weights(other)
    list(pool.run(PLAN, [0]))
    old, fresh = (dict(client._module.proxy.named_parameters()) for client in seen)
    assert all(np.array_equal(old[name].detach(), fresh[name].detach()) for name in old)
    assert all(np.array_equal(fresh[name].detach(), value) for name, value in (CHANGE | other).items())
