"""Two pools on one cluster of 2 CPUs."""

import threading
import time
import warnings

import pytest

from fedpft.config import ConfigError, PoolConfig
from fedpft.federated.messages import RoundPlan
from fedpft.federated.pool import SequentialPool
from fedpft.models.lora import get_adapter
from fedpft.models.weights import unpack_model
from tests.tiny import tiny_package

reservation = pytest.importorskip(
    "fedpft.simulation.pool.reservation", reason="Ray is not installed", exc_type=ImportError
)
RayClientPool = pytest.importorskip("fedpft.simulation.pool.ray_pool").RayClientPool
PACKAGE = tiny_package()
ADAPTER = get_adapter(unpack_model(PACKAGE.proxy))
PLAN = RoundPlan(round_index=1, lr=1e-2, adapter=ADAPTER, count_activations=False)

pytestmark = [pytest.mark.usefixtures("local_ray", "few_waits"), pytest.mark.filterwarnings("ignore:pool:UserWarning")]


@pytest.fixture
def few_waits(monkeypatch):
    monkeypatch.setattr(reservation, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(reservation, "FIRST_LINE_SECONDS", 0.2)


@pytest.fixture
def claim():
    """Return a function that claims places as another run does; all are given back."""
    claims = []

    def claim(size, **config):
        claims.append(reservation.reserve(PoolConfig(actors=size, **config), size))
        return claims[-1]

    yield claim
    for claimed in claims:
        claimed.release()


def free_cpus():
    return sum(node.cpus for node in reservation.free_nodes())


def wait_until_free(cpus):
    deadline = time.monotonic() + 300
    while free_cpus() != cpus:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_claim_is_all_or_nothing_and_comes_back(claim):
    wait_until_free(2)
    claimed = claim(2, cpus_per_actor=0.75)
    wait_until_free(0.5)
    claimed.release()
    wait_until_free(2)
    assert free_cpus() == 2


def test_auto_takes_what_others_left_and_says_so(claim):
    claim(1)
    with pytest.warns(UserWarning, match=r"^pool: starts 1 actor\(s\) instead of 2: others hold the rest"):
        second = reservation.reserve(PoolConfig(actors="auto"), 2)
    assert second.size == 1
    wait_until_free(0)
    second.release()


def test_auto_takes_everything_without_a_word_where_nobody_else_is(monkeypatch):
    monkeypatch.setattr(reservation, "FIRST_LINE_SECONDS", 60)  # of a busy machine, which takes a moment
    wait_until_free(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        claimed = reservation.reserve(PoolConfig(actors="auto"), 2)
    assert claimed.size == 2
    claimed.release()


@pytest.mark.parametrize(("actors", "need"), [("auto", r"1 x 1 CPU + 0.6 GB"), ("per_client", "2 x 1 CPU")])
def test_without_room_a_run_waits_says_for_what_and_gets_it_when_it_is_free(claim, actors, need):
    first = claim(2, cpus_per_actor=0.75)
    threading.Timer(1.0, first.release).start()
    with pytest.warns(UserWarning, match="^pool:") as caught:
        second = reservation.reserve(PoolConfig(actors=actors), 2)
    lines = [str(warning.message) for warning in caught]
    assert any(
        line.startswith(f"pool: waiting for {need}; the cluster has 0.5 of 2 CPU") and " free; since " in line
        for line in lines
    )
    assert second.size >= (1 if actors == "auto" else 2)
    second.release()


@pytest.mark.cluster
def test_lines_about_waiting_become_rarer(claim):
    claim(2)
    with pytest.warns(UserWarning, match="^pool: waiting for 1 x 1 CPU") as caught, pytest.raises(ConfigError):
        reservation.reserve(PoolConfig(actors=1, start_timeout_seconds=2.0), 1)
    assert 2 <= len(caught) <= 4, "after 0.2, 0.4, 0.8 and 1.6 s, where nothing stalls; it looks 20 times"


def test_a_run_that_waited_too_long_gives_up_and_leaves_no_claim(claim):
    first = claim(2, cpus_per_actor=0.75)
    message = (
        r"^pool.actors: waited \d+ s for 2 x 1 CPU; the cluster has 0.5 of 2 CPU free; lower pool.actors, or wait for "
        r"longer: pool.start_timeout_seconds$"
    )
    with pytest.raises(ConfigError, match=message):
        RayClientPool(PoolConfig(actors=2, start_timeout_seconds=0.5), clients_per_round=2)
    first.release()
    wait_until_free(2)


def test_a_signal_while_waiting_leaves_no_claim(claim, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    first = claim(2)
    monkeypatch.setattr(reservation, "free_nodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reservation.reserve(PoolConfig(actors=1), 1)
    monkeypatch.undo()
    first.release()
    wait_until_free(2)


@pytest.mark.cluster
def test_two_pools_share_the_cluster_and_both_give_the_bits_of_one_alone():
    def run(pool):
        pool.broadcast(PACKAGE)
        return {update.client_id: update.adapter.tobytes() for update in pool.run(PLAN, [0, 1, 2])}

    expected = run(SequentialPool())
    first = RayClientPool(PoolConfig(actors=1), clients_per_round=3)
    second = RayClientPool(PoolConfig(actors="auto"), clients_per_round=3)
    try:
        assert (first.num_actors, second.num_actors) == (1, 1)
        assert run(second) == expected
        assert run(first) == expected
    finally:
        second.close()
        first.close()
    wait_until_free(2)
