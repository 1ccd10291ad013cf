"""Runs submitted to a real Ray on this machine, with dashboard, token and metrics; see `make cluster-test`."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fedpft.config import load_config
from tests.tiny import tiny_text_run

pytest.importorskip("ray", reason="Ray is not installed")
from fedpft.simulation.metrics import COUNTERS, GAUGES

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
NUM_ROUNDS = 40


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition, seconds, process=None):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "it ended"
        time.sleep(0.2)
    return found


class Cluster:
    """A head with 2 CPUs and a home folder of its own; it knows fedpft only from what is submitted."""

    def __init__(self, home):
        bin_folder = Path(sys.executable).parent
        self.home, self.url = home, f"http://127.0.0.1:{free_port()}"
        self.temp = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie in it, their paths must be short
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        common = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH"))} | token
        self.environment = common | {"PYTHONPATH": str(ROOT)}
        ours = {
            "HOME": str(home),
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "RAY_metrics_report_interval_ms": "500",
        }
        options = {
            "port": free_port(), "dashboard-host": "127.0.0.1", "dashboard-port": self.url.rpartition(":")[2],
            "ray-client-server-port": free_port(), "dashboard-agent-listen-port": free_port(), "num-cpus": 2,
            "num-gpus": 0, "object-store-memory": 100 * 2**20, "temp-dir": self.temp,
        }  # fmt: skip
        command = [bin_folder / "ray", "start", "--head", "--block", "--disable-usage-stats"]
        self.process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=common | ours,
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def is_up(self):
        return self("stop", "nobody").stderr == "error: JOB_ID: found 'nobody', allowed: a job of this cluster\n"

    def __call__(self, *arguments, **environment):
        """Run `fedpft ... --address URL` and return what it did."""
        return subprocess.run(
            [sys.executable, "-m", "fedpft.cli", *map(str, arguments), "--address", self.url],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    @contextmanager
    def board(self):
        """Serve the board of the cluster's runs and jobs; yields a function from a path to its page."""
        command = [
            sys.executable,
            "-m",
            "fedpft.cli",
            "board",
            self.home / "outputs",
            "--port=0",
            "--address",
            self.url,
        ]
        environment = self.environment | {"HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            address = process.stdout.readline().split()[1]
            yield lambda path: urllib.request.urlopen(address + path, timeout=10).read().decode()
        finally:
            process.terminate()
            process.wait(timeout=60)

    def metrics(self):
        """Return what Prometheus would read from all places where Ray says that it can."""
        (group,) = json.loads((self.temp / "prom_metrics_service_discovery.json").read_text())
        text = ""
        for target in group["targets"]:
            request = urllib.request.Request(f"http://{target}/metrics")
            with urllib.request.urlopen(request, timeout=10) as answer:
                text += answer.read().decode()
        return text

    def close(self):
        processes = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        psutil.wait_procs(processes[1:], timeout=20)
        for process in processes:
            if process.poll() is None if process is self.process else process.is_running():
                process.kill()
        shutil.rmtree(self.temp, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    started = Cluster(tmp_path_factory.mktemp("home"))
    try:
        wait_for(started.is_up, 120, started.process)
        yield started
    finally:
        started.close()


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: tiny\n")
    settings = [*tiny_text_run(tmp_path), "pool={kind: ray, accelerator: cpu}", "server.num_threads=1"]
    return [path, *settings, f"federated.rounds={NUM_ROUNDS}"]


def value_of(name, text):
    """Return the number of our run's series `name`, if it is there."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{") and 'run="tiny-' in line]
    return float(lines[0].rpartition(" ")[2]) if lines else None


def test_a_run_that_is_stopped_and_resumed_on_the_cluster_ends_like_one_here(cluster, config, tmp_path):
    from fedpft.run.pipeline import run

    folder = cluster.home / "outputs/tiny"
    submitted = [*config, "output_dir=outputs/tiny"]
    job_id = cluster("submit", *submitted, "--detach").stdout.strip()

    # while it runs, its numbers are among the cluster's
    exported = {*(f"ray_{name}" for name in GAUGES), *(f"ray_{name}_total" for name in COUNTERS)}
    faults_only = {"ray_fedpft_dropped_clients_total", "ray_fedpft_client_retries_total"}
    after_the_last_round = {"ray_fedpft_sub_fm_score", "ray_fedpft_fm_score"}
    wait_for(lambda: (value_of("ray_fedpft_round", cluster.metrics()) or 0) >= 1, 200)
    time.sleep(2)
    text = cluster.metrics()
    seen = {name for name in exported if value_of(name, text) is not None}
    assert seen >= exported - faults_only - after_the_last_round
    assert 0 < value_of("ray_fedpft_actor_utilization", text) <= 1
    assert value_of("ray_fedpft_bytes_up_total", text) > 0

    # stopped, it keeps its checkpoint
    assert cluster("stop", job_id).stdout == f"{job_id}: stopped\n"
    rounds_done = len((folder / "rounds.jsonl").read_text().splitlines())
    assert 1 <= rounds_done < NUM_ROUNDS
    assert list((folder / "checkpoints").glob("round-*/state.json"))
    assert not (folder / "result.json").exists()
    followed = cluster("follow", job_id)
    assert followed.returncode == 143
    assert "interrupted; go on with: fedpft resume outputs/tiny" in followed.stdout
    assert f"dashboard  {cluster.url}" in followed.stdout

    # resumed, it ends with the bits of a run that never left this process
    resumed = cluster("submit", *submitted, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "run folder  ~/outputs/tiny" in resumed.stdout
    assert "going on after round" in resumed.stdout
    path, *overrides = [*config, f"output_dir={tmp_path / 'here'}", "pool.kind=sequential"]
    run(load_config(path, overrides))
    for name in ("adapter/adapter_model.safetensors", "sub_fm/model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_the_board_shows_jobs_with_log_and_use_of_their_actors_beside_their_folders(cluster, config):
    job_id = cluster("submit", *config, "output_dir=outputs/long", "federated.rounds=5000", "--detach").stdout.strip()
    try:
        with cluster.board() as page:
            log = re.compile(r'<div class="log".*round \d+/5000', re.DOTALL)
            shown = wait_for(lambda: log.search(text := page(f"job/{job_id}")) and text, 200)
            assert f'href="{cluster.url}/#/jobs/' in shown
            used = r"ClientActor.*?process \d+</td><td[^>]*>\d+ %</td><td[^>]*>[\d.]+ MB"
            wait_for(lambda: re.search(used, page("cluster")), 200)  # Ray measures every some seconds
            key = re.search(r'href="/(run/[0-9a-f]+)"', shown)[1]
            assert f'href="/job/{job_id}"' in page(key)
    finally:
        cluster("stop", job_id)


def test_a_run_that_fails_gives_its_exit_code_and_line(cluster, config):
    done = cluster("submit", *config, "fm.path=/nowhere")
    assert done.returncode == 2
    assert "error: fm.path: found '/nowhere', allowed:" in done.stdout


def test_without_the_token_nothing_is_taken(cluster, config):
    done = cluster("submit", *config, RAY_AUTH_MODE="disabled")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --address: found '{cluster.url}', allowed: ")
    assert "RAY_AUTH_MODE=token" in line
