"""How a pool fits itself to memory: its arithmetic with places that are made up, and for real on a pretended GPU."""

from types import SimpleNamespace

import pytest

from fedpft.config import PoolConfig
from fedpft.federated.messages import ClientFailure
from fedpft.federated.pool import SequentialPool

pytest.importorskip("fedpft.simulation.pool.packed_pool", reason="Ray is not installed", exc_type=ImportError)
from fedpft.simulation.cluster import Node, num_actors
from fedpft.simulation.pool import crew, packed_pool
from fedpft.simulation.pool.client_actor import ClientActor
from fedpft.simulation.pool.packing import MemoryUse
from fedpft.simulation.pool.ray_pool import RayClientPool
from tests.simulation.faulty import PACKAGE, PLAN, faulty_actor

GIB = 2**30


@pytest.fixture
def make(monkeypatch):
    """Return a function that makes a pool on made-up nodes, which sees `use` and only notes where it would move."""

    def make(nodes, *, use=None, clients=100, is_inherited=False, **config):
        lines = []

        def start(pool, config, clients_per_round):
            size = num_actors(config, clients_per_round, nodes)
            pool._config, pool._crew = config, SimpleNamespace(actors=[None] * size)
            pool._places = SimpleNamespace(is_inherited=is_inherited)

        def move(pool, config, size):
            pool._config, pool._crew = config, SimpleNamespace(actors=[None] * size)

        monkeypatch.setattr(RayClientPool, "__init__", start)
        monkeypatch.setattr(RayClientPool, "broadcast", lambda pool, package: None)
        monkeypatch.setattr(packed_pool, "cluster_nodes", lambda: nodes)
        monkeypatch.setattr(packed_pool.PackedPool, "_try", lambda pool, package: use)
        monkeypatch.setattr(packed_pool.PackedPool, "_move", move)
        pool = packed_pool.PackedPool(PoolConfig(**config), clients, lines.append)
        pool.broadcast(PACKAGE)
        return pool, lines

    return make


def use(peak, free):
    return MemoryUse(peak_bytes=int(peak * GIB), free_bytes=int(free * GIB))


@pytest.mark.parametrize(
    ("nodes", "found", "settings", "actors", "share"),
    [
        ([Node(64, 2)], use(5.8, 80), {}, 22, 0.0909),  # 80 / 6.67 = 11 on each GPU
        ([Node(32, 1), Node(32, 1)], use(5.8, 80), {}, 22, 0.0909),
        ([Node(64, 2)], use(50, 80), {}, 2, 1.0),  # one on each
        ([Node(64, 2)], use(1, 80), {"clients": 5}, 5, 0.3333),  # 3 on one, 2 on the other, not all on one
        ([Node(6, 2)], use(1, 80), {}, 6, 0.3333),  # no more than cores, and as many on each GPU
        ([Node(64, 2)], use(1, 80), {"actors": 4}, 4, 0.5),  # a number is the most
        ([Node(64, 2)], use(50, 80), {"actors": 4}, 2, 1.0),
        ([Node(64, 2)], use(1, 80), {"actors": "per_client", "clients": 4}, 4, 0.5),
        ([Node(64, 2)], None, {}, 2, 1.0),  # the probe failed
        ([Node(64, 2)], use(1, 80), {"is_inherited": True}, 2, 1.0),  # a sweep's trial keeps the places that it has
    ],
)
def test_each_gpu_gets_as_many_actors_as_its_memory_cores_and_clients_allow(
    make, nodes, found, settings, actors, share
):
    pool, _ = make(nodes, use=found, gpus_per_actor="auto", **settings)
    assert (pool.num_actors, pool._config.gpu_claim) == (actors, share)


def test_the_packing_is_told(make):
    pool, lines = make([Node(64, 2)], use=use(5.8, 80), gpus_per_actor="auto")
    assert lines == ["probed 5.8 GiB a client, 80.0 GiB free: 22 actor(s) on 2 GPU(s)"]
    pool.broadcast(PACKAGE)
    assert len(lines) == 1, "once is enough"


@pytest.mark.parametrize(
    ("peak", "settings", "actors", "line"),
    [
        (0.4, {}, 8, None),
        (3.0, {}, 3, "probed 3.0 GiB a client, 9.0 GiB free: 3 actor(s) instead of 8"),  # 3.7e9 of 12e9 bytes
        (3.0, {"actors": 8}, 8, None),
        (3.0, {"actors": "per_client", "clients": 8}, 8, None),
    ],
)
def test_auto_on_cpus_takes_no_more_than_the_ram_holds(make, peak, settings, actors, line):
    pool, lines = make([Node(8, 0, 12e9)], use=use(peak, 9), **settings)
    assert (pool.num_actors, lines) == (actors, [line] if line else [])


@pytest.mark.parametrize(
    ("nodes", "settings", "sizes"),
    [
        ([Node(64, 2)], {"gpus_per_actor": 0.25}, [(8, 0.25), (6, 0.3333), (4, 0.5), (2, 1.0), (2, 1.0)]),
        ([Node(64, 2)], {"gpus_per_actor": 0.25, "actors": 5}, [(5, 0.25), (4, 0.3333), (3, 0.5), (2, 1.0)]),
        ([Node(3, 0)], {}, [(3, 0), (2, 0), (1, 0), (1, 0)]),
        ([Node(64, 2)], {"gpus_per_actor": 1.0}, [(2, 1.0), (2, 1.0)]),
    ],
)
def test_without_memory_there_is_one_actor_less_on_each_gpu_or_in_all(make, nodes, settings, sizes):
    pool, _ = make(nodes, **settings)
    found = [(pool.num_actors, pool._config.gpu_claim)]
    for _ in sizes[1:]:
        pool._back_off([3])
        found.append((pool.num_actors, pool._config.gpu_claim))
    assert found == sizes


@pytest.fixture
def expected():
    pool = SequentialPool()
    pool.broadcast(PACKAGE)
    return {update.client_id: update.adapter.tobytes() for update in pool.run(PLAN, [0, 1, 2, 3])}


def adapters(outcomes):
    return {outcome.client_id: outcome.adapter.tobytes() for outcome in outcomes}


@pytest.mark.cluster
def test_actors_that_share_a_gpu_are_packed_by_a_probe_and_give_the_bits_of_one_place(local_ray, monkeypatch, expected):
    class Actor(ClientActor):
        """Says where it is as its name."""

        def __init__(self, name, *arithmetic):
            import ray

            super().__init__(f"{name} on GPU {ray.get_gpu_ids()}", *arithmetic)

    monkeypatch.setattr(crew, "ClientActor", Actor)
    lines = []
    pool = packed_pool.PackedPool(PoolConfig(gpus_per_actor="auto"), 4, lines.append)
    try:
        assert pool.num_actors == 1, "on the whole GPU, until it is known what a client needs"
        pool.broadcast(PACKAGE)
        (line,) = lines
        assert line.startswith("probed ")
        assert line.endswith("GiB free: 2 actor(s) on 1 GPU(s)"), "two cores"
        updates = list(pool.run(PLAN, [0, 1, 2, 3]))
        assert {update.actor for update in updates} == {"actor-1 on GPU [0]", "actor-2 on GPU [0]"}
        assert adapters(updates) == expected
    finally:
        pool.close()


@pytest.mark.cluster
def test_a_client_without_memory_is_tried_alone_after_the_others_with_fewer_actors(
    local_ray, monkeypatch, tmp_path, expected
):
    monkeypatch.setattr(crew, "ClientActor", faulty_actor(tmp_path))
    lines = []
    pool = packed_pool.PackedPool(PoolConfig(actors=2, cpus_per_actor=0.5), 4, lines.append)
    try:
        pool.broadcast(PACKAGE)
        (tmp_path / "1-0.0").write_text("starve")
        updates = list(pool.run(PLAN, [0, 1, 2, 3]))
        assert (updates[-1].client_id, updates[-1].attempts) == (0, 2)
        assert [update.attempts for update in updates[:-1]] == [1, 1, 1]
        assert adapters(updates) == expected
        assert pool.num_actors == 1
        assert lines == ["out of memory: client(s) 0 tried again alone; the pool goes on with 1 of 2 actors"]
    finally:
        pool.close()


def test_a_client_for_which_a_device_of_its_own_is_too_small_is_dropped_and_costs_actors_once(make, monkeypatch):
    """Of 0, 1 and 2 the last never fits; it is tried alone after the others of its first round, and then no more."""
    runs = []

    def failure(client_id):
        where = {"actor": "actor-0", "node": "here", "reason": "MemoryError"}
        return ClientFailure(round_index=1, client_id=client_id, attempts=1, out_of_memory=client_id == 2, **where)

    def run(pool, plan, client_ids):
        runs.append((client_ids, pool.num_actors))
        return map(failure, client_ids)

    pool, lines = make([Node(4, 0)])
    monkeypatch.setattr(RayClientPool, "run", run)
    first, second = ([(f.client_id, f.attempts) for f in pool.run(PLAN, ids)] for ids in ([2, 0, 1], [1, 2]))
    assert first == [(0, 1), (1, 1), (2, 2)]
    assert second == [(1, 1), (2, 1)]
    assert runs == [([2, 0, 1], 4), ([2], 3), ([1, 2], 3)]
    assert len(lines) == 1
