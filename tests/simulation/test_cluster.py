import psutil
import pytest

from fedpft.config import ConfigError, PoolConfig

cluster = pytest.importorskip("fedpft.simulation.cluster", reason="Ray is not installed", exc_type=ImportError)
Node, num_actors = cluster.Node, cluster.num_actors


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "expected"),
    [
        (Node(1, 0), 0.1, 0, 10),
        (Node(3, 0), 0.3, 0, 10),
        (Node(8, 0), 1, 0, 8),
        (Node(8, 0), 3, 0, 2),
        (Node(8, 1), 1, 0.25, 4),
        (Node(2, 1), 1, 0.25, 2),
        (Node(8, 2), 1, 1, 2),
        (Node(8, 2), 1, 0.6, 2),
        (Node(8, 0), 1, 0.1, 0),
        (Node(0, 0), 1, 0, 0),
        (Node(0.5, 4), 1, 0, 0),
        (Node(8, 0.5), 1, 0.25, 2),
        (Node(8, 1.5), 1, 0.25, 6),
        (Node(8, 1.5), 1, 1, 1),
    ],
)
def test_a_node_holds_what_its_scarcest_resource_allows(node, cpus, gpus, expected):
    assert node.fits(cpus, gpus) == expected


def test_actors_do_not_straddle_nodes():
    config = PoolConfig(actors=2, cpus_per_actor=3)
    assert num_actors(config, 5, [Node(3, 0), Node(4, 0)]) == 2
    with pytest.raises(ConfigError, match="asks 2 actors x 3 CPU, the cluster has 8 CPU on 4"):
        num_actors(config, 5, [Node(2, 0)] * 4)


@pytest.mark.parametrize(("clients", "expected"), [(3, 3), (7, 7), (20, 12)])
def test_auto_takes_what_fits_but_no_more_than_clients(clients, expected):
    nodes = [Node(8, 0), Node(4, 0)]
    assert num_actors(PoolConfig(actors="auto"), clients, nodes) == expected


def test_auto_counts_fractions_on_every_node():
    assert num_actors(PoolConfig(cpus_per_actor=0.1), 100, [Node(1, 0), Node(2, 0)]) == 30


def test_per_client_starts_one_actor_for_each_client():
    assert num_actors(PoolConfig(actors="per_client"), 5, [Node(2, 0), Node(3, 0)]) == 5


def test_a_number_of_actors_is_taken_as_it_is():
    assert num_actors(PoolConfig(actors=4), 2, [Node(8, 0)]) == 4


@pytest.mark.parametrize(("actors", "wanted"), [("per_client", 9), (7, 7)])
def test_too_many_actors_name_both_numbers(actors, wanted):
    with pytest.raises(ConfigError) as error:
        num_actors(PoolConfig(actors=actors), 9, [Node(2, 0)])
    assert f"pool.actors: asks {wanted} actors x 1 CPU, the cluster has 2 CPU" in str(error.value)
    assert "room for 2 actors" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("actors", ["auto", 1, "per_client"])
def test_a_gpu_is_refused_where_there_is_none(actors):
    with pytest.raises(ConfigError, match=r"asks \d actors x 1 CPU and 0.25 GPU, the cluster has 4 CPU and 0 GPU"):
        num_actors(PoolConfig(actors=actors, gpus_per_actor=0.25), 3, [Node(4, 0)])


def test_auto_takes_what_fits_into_the_memory_of_each_node_and_a_number_is_taken_as_it_is():
    nodes = [Node(8, 0, 2.0e9), Node(8, 0, 1.9e9)]
    assert num_actors(PoolConfig(memory_per_actor_gigabytes=1), 20, nodes) == 3
    assert num_actors(PoolConfig(memory_per_actor_gigabytes=1, actors=9), 20, nodes) == 9
    with pytest.raises(ConfigError, match=r"asks 1 actors x 1 CPU and 3 GB, the cluster has 16 CPU and 3.9 GB on 2"):
        num_actors(PoolConfig(memory_per_actor_gigabytes=3), 20, nodes)


def test_gpus_are_shared_in_fractions():
    nodes = [Node(16, 1)]
    assert num_actors(PoolConfig(actors="auto", gpus_per_actor=0.25), 10, nodes) == 4
    with pytest.raises(ConfigError, match=r"asks 8 actors x 1 CPU and 0.25 GPU, the cluster has 16 CPU and 1 GPU"):
        num_actors(PoolConfig(actors=8, gpus_per_actor=0.25), 10, nodes)


@pytest.mark.parametrize(("actors", "expected"), [("auto", 2), ("per_client", 2), (5, 2), (1, 1)])
def test_before_a_gpus_share_is_known_each_has_one_actor_at_most(actors, expected):
    assert num_actors(PoolConfig(actors=actors, gpus_per_actor="auto"), 10, [Node(16, 2)]) == expected


def test_planning_looks_at_this_machine_without_starting_ray(monkeypatch):
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(cluster.torch.cuda, "device_count", lambda: 0)
    assert cluster.actors_that_fit(PoolConfig(), 10, lambda gpus: 0) == 3
    monkeypatch.setattr(cluster.torch.cuda, "device_count", lambda: 2)
    assert cluster.actors_that_fit(PoolConfig(gpus_per_actor=1), 10, lambda gpus: gpus / 2) == 1


def test_an_unreachable_cluster_is_one_line(monkeypatch):
    def refuse(**_):
        raise ConnectionError("no cluster found\nmany\nlines")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"^pool.address: found 'auto', allowed: .*; no cluster found$"):
        cluster.connect("auto")


def test_a_running_ray_is_joined_and_counted(local_ray):
    assert not cluster.connect(None)
    (node,) = cluster.cluster_nodes()
    assert (node.cpus, node.gpus) == (2, 1)
    assert 10**8 < node.memory_bytes < psutil.virtual_memory().total
    assert cluster.actors_that_fit(PoolConfig(), 10, lambda gpus: 0) == 2
    assert local_ray.is_initialized(), "whoever started Ray ends it"
