"""The server's side in a process of Ray's: what comes back from there, and that the FM stays there."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedpft.config import Config, ConfigError, PoolConfig, ServerConfig, load_config
from fedpft.federated.messages import ClientUpdate
from fedpft.federated.observer import SilentObserver
from fedpft.interrupt import Interrupted, RunStoppedError, interruptible
from fedpft.run import launch
from tests.simulation.conftest import held_places
from tests.tiny import tiny_text_run

server = pytest.importorskip("fedpft.simulation.server", reason="Ray is not installed", exc_type=ImportError)
cluster = pytest.importorskip("fedpft.simulation.cluster")
reservation = pytest.importorskip("fedpft.simulation.pool.reservation")
HERE = Config(name="x", server=ServerConfig(num_threads=2))


class Observer(SilentObserver):
    def __init__(self):
        self.heard = []

    def note(self, line):
        self.heard.append(line)

    def progress(self, done, total, metrics):
        self.heard.append((done, total, metrics["loss"]))

    def client_finished(self, update):
        self.heard.append((update.client_id, update.adapter.size, update.metrics["loss"]))


def raises(error):
    def serve(config, observer):
        raise error

    return serve


@pytest.mark.usefixtures("local_ray")
class TestInAProcess:
    def test_it_works_in_this_folder_with_the_threads_asked_for_and_its_events_and_warnings_come_here(self):
        def serve(config, observer):
            observer.note("[odd] note")
            for step in range(1, 101):
                observer.progress(step, 100, {"loss": 1 / step})
            adapter = torch.ones(5).numpy()
            update = ClientUpdate(client_id=3, num_examples=1, adapter=adapter, metrics={"loss": 0.5})
            observer.client_finished(update)
            warnings.warn("ours", stacklevel=2)
            warnings.warn("a library's", FutureWarning, stacklevel=2)
            return config.name, os.getcwd(), torch.get_num_threads(), os.getpid()

        observer = Observer()
        with pytest.warns(UserWarning, match="^ours$") as caught:
            name, folder, threads, pid = server.serve_elsewhere(serve, HERE, observer, 0)
        assert (name, folder, threads) == ("x", os.getcwd(), 2)
        assert pid != os.getpid()
        assert len(caught) == 1
        where, note, first, *some, last, client = observer.heard
        assert where.endswith(f", run folder {os.getcwd()}/{HERE.output_dir}")
        assert (note, first, last, client) == ("[odd] note", (1, 100, 1.0), (100, 100, 0.01), (3, 0, 0.5))
        assert len(some) < 20, "of a hundred quick steps"

    @pytest.mark.cluster
    def test_what_it_has_claimed_is_not_there_for_the_actors(self):
        def serve(config, observer):
            nodes = cluster.cluster_nodes()
            quarters = cluster.num_actors(PoolConfig(gpus_per_actor=0.25, cpus_per_actor=0.1), 9, nodes)
            packed = cluster.with_first_claim(PoolConfig(gpus_per_actor="auto"), nodes)
            with pytest.raises(ConfigError, match=r"asks 1 actors x 1 CPU and 1 GPU, the cluster has 1 CPU and 0\.5"):
                cluster.num_actors(PoolConfig(gpus_per_actor=1), 9, nodes)
            claim = reservation.reserve(packed, 1)  # both on the one GPU, in halves
            claim.release()
            return (
                [(node.cpus, node.gpus) for node in nodes],
                quarters,
                packed.gpu_claim,
                os.environ["CUDA_VISIBLE_DEVICES"],
            )

        found = server.serve_elsewhere(serve, HERE, Observer(), 0.5)
        assert found == ([(1, 0.5)], 2, 0.5, "0")
        assert [node.gpus for node in cluster.cluster_nodes()] == [1]

    @pytest.mark.parametrize(
        "error",
        [
            OSError(28, "full", "file"),
            pytest.param(ConfigError("key: one line"), marks=pytest.mark.cluster),
            pytest.param(RunStoppedError("why"), marks=pytest.mark.cluster),
        ],
    )
    def test_what_a_user_must_hear_is_raised_as_it_would_be_here(self, error):
        with pytest.raises(type(error)) as raised:
            server.serve_elsewhere(raises(error), HERE, SilentObserver(), 0)
        assert type(raised.value) is type(error)
        assert str(raised.value) == str(error)

    def test_another_error_has_the_traceback_of_where_it_was_raised(self):
        with pytest.raises(ZeroDivisionError, match="in serve"):
            server.serve_elsewhere(raises(ZeroDivisionError("odd")), HERE, SilentObserver(), 0)

    @pytest.mark.parametrize("waits_for_ray", [pytest.param(False, marks=pytest.mark.cluster), True])
    def test_a_signal_here_interrupts_it_there_and_waits_until_it_has_cleaned_up(self, tmp_path, waits_for_ray):
        def serve(config, observer):
            import ray

            client = ray.remote(num_cpus=0)(lambda: time.sleep(60)).remote()
            try:
                (tmp_path / "serves").touch()
                while True:
                    if waits_for_ray:
                        ray.wait([client], timeout=60)
            except BaseException:
                time.sleep(0.5)
                (tmp_path / "cleaned").touch()
                raise

        def interrupt():
            while not (tmp_path / "serves").exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Interrupted), interruptible():
            server.serve_elsewhere(serve, HERE, SilentObserver(), 0)
        thread.join()
        assert (tmp_path / "cleaned").exists()

    @pytest.mark.parametrize(
        ("number", "line"), [(signal.SIGTERM, "was told to end; "), (signal.SIGKILL, "^the server's process ended ")]
    )
    def test_a_process_that_ends_is_one_line_with_the_way_on(self, number, line):
        def serve(config, observer):
            os.kill(os.getpid(), number)
            time.sleep(60)

        with pytest.raises(RunStoppedError, match=line) as raised:
            server.serve_elsewhere(serve, HERE, SilentObserver(), 0)
        assert str(raised.value).endswith("; go on with: fedpft resume outputs/${name}")
        assert "\n" not in str(raised.value)

    def test_more_gpus_than_any_node_has_are_refused_at_once(self):
        found = HERE
        with pytest.raises(ConfigError, match=r"^server.num_gpus: found 2, allowed: at most 1, .* largest node$"):
            server.serve_elsewhere(raises(ValueError), found, SilentObserver(), 2)

    @pytest.fixture
    def others(self, local_ray):
        """Claim every place of the cluster until the test is over, however it ends."""
        from ray.util.placement_group import placement_group, remove_placement_group

        claimed = placement_group([{"CPU": 1}, {"CPU": 1}])
        try:
            local_ray.get(claimed.ready(), timeout=60)
            yield
        finally:
            remove_placement_group(claimed)

    @pytest.mark.usefixtures("others")
    def test_who_holds_the_places_of_the_shared_cluster_can_be_said(self, local_ray):
        assert "{0: {'CPU': 1.0}, 1: {'CPU': 1.0}}" in held_places(local_ray)

    @pytest.mark.usefixtures("others")
    def test_a_process_that_finds_no_room_is_given_up_and_leaves_no_claim(self, monkeypatch):
        monkeypatch.setattr(server, "PATIENCE_SECONDS", 0.2)
        observer = Observer()
        found = replace(HERE, pool=replace(HERE.pool, start_timeout_seconds=1.0))
        said = r"^server.num_gpus: found 0, allowed: what a node has free; waited \d+ s"
        with pytest.raises(ConfigError, match=said):
            server.serve_elsewhere(raises(ValueError), found, observer, 0)
        assert observer.heard == ["server  waits for a process with 1 CPU + 0 GPU on one node"]


def test_this_machine_has_no_more_gpus_than_it_has(monkeypatch):
    monkeypatch.setattr(server.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(server.ray, "init", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(ConfigError, match=r"^server.num_gpus: found 2, allowed: at most 0, .*; .* pool.address$"):
        server.serve_elsewhere(raises(ValueError), HERE, SilentObserver(), 2)


@pytest.mark.parametrize(
    ("asked", "own", "pool", "claimed"),
    [
        (0, 0, {}, None), (1, 1, {}, None), (0.5, 0, {}, 0.5), (2, 1, {}, 2),  # where this process sees too few
        (1, 1, {"address": "auto"}, 1), (0, 1, {"address": "auto"}, None),  # others may claim the one that it sees
        (1, 4, {"gpus_per_actor": 0.5}, 1), (0, 4, {"gpus_per_actor": 0.5}, None),  # the run's own actors claim some
        ("auto", 4, {"gpus_per_actor": 0.5}, 1), ("auto", 1, {"gpus_per_actor": 0.25}, 0.25),
        ("auto", 0, {"gpus_per_actor": 0.5}, None), ("auto", 1, {}, None), ("auto", 1, {"kind": "sequential"}, None),
    ],
)  # fmt: skip
def test_a_server_that_shares_gpus_with_others_claims_its_own_in_a_process_of_ray(
    monkeypatch, asked, own, pool, claimed
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: own)
    monkeypatch.setattr(launch, "run", lambda config, observer, **_: None)
    monkeypatch.setattr(server, "serve_elsewhere", lambda serve, config, observer, num_gpus: num_gpus)
    config = replace(HERE, server=ServerConfig(num_gpus=asked), pool=PoolConfig(**pool))
    assert launch.launch(config, SilentObserver()) == claimed


class Nodes:
    """Runs on a head without a GPU and a node with one, in processes of their own: a process joins one cluster."""

    def __init__(self, folder):
        self.folder = folder
        self.settings = [*tiny_text_run(folder), "method.retained_ratio=0.25", "cache.enabled=false"]

    def config(self, name):
        settings = [*self.settings, "server={accelerator: cpu, num_threads: 1}", f"output_dir={self.folder / name}"]
        return load_config(None, settings)

    def __call__(self, moment):
        script = Path(__file__).with_name("server_elsewhere.py")
        placed = [
            "pool={kind: ray, accelerator: cpu, actors: 2}",
            "server={accelerator: cpu, num_threads: 1, num_gpus: 1}",
        ]
        done = subprocess.run(
            [sys.executable, script, self.folder, moment, *self.settings, *placed],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def files(self, name):
        paths = ("adapter/adapter_model.safetensors", "sub_fm/model.safetensors")
        return [(self.folder / name / path).read_bytes() for path in paths]


@pytest.fixture
def nodes(tmp_path):
    return Nodes(tmp_path)


@pytest.mark.cluster
def test_the_fm_is_loaded_on_the_gpu_node_alone_and_the_run_ends_with_the_bits_of_one_here(nodes):
    found = nodes("end")
    assert found["ended"] == "finished"
    assert found["loaded"]["node"] == found["gpu_node"]
    assert found["loaded"]["gpus"] == [0]
    assert found["rounds"] == [1, 2, 3, 4]
    assert found["stores"] == [[True, False]] * 4, "rows that clients are sent are in the object stores, others not"
    finished = launch.launch(nodes.config("here"), SilentObserver())
    assert finished.result["fm"] == found["fm"]
    assert nodes.files("out") == nodes.files("here")


@pytest.mark.cluster
def test_an_interrupted_run_leaves_no_process_and_goes_on_there_to_the_bits_of_one_that_never_stopped(nodes):
    interrupted = nodes("round")
    assert (interrupted["ended"], interrupted["left"]) == ("Interrupted: SIGINT", [])
    assert interrupted["stopping_seconds"] < server.STOP_SECONDS, "it cleaned up and was not killed"
    assert list((nodes.folder / "out/checkpoints").glob("round-*/state.json"))
    resumed = nodes("end")
    assert resumed["ended"] == "finished"
    assert any("going on after round" in note for note in resumed["notes"])
    launch.launch(nodes.config("here"), SilentObserver())
    assert nodes.files("out") == nodes.files("here")


@pytest.mark.cluster
def test_a_server_that_is_gone_ends_the_run_in_one_line(nodes):
    found = nodes("gone")
    assert found["ended"].startswith("RunStoppedError: the server's process ended (")
    assert found["ended"].endswith(f"; go on with: fedpft resume {nodes.folder / 'out'}")
