"""A run on three nodes: are its bits those of one machine, what crosses the wire, and what if a node is lost?

    python -m experiments.benchmarks.simulation.nodes [KEY=VALUE]...

Each node is a machine of its own (machines.py) with one actor at most; head and driver share the first. The digits
config runs on this machine alone, on three nodes, and on three of which one is switched off within a round. Writes
`experiments/results/simulation/nodes.json`.
"""

import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.benchmarks.simulation.machines import Machine, Machines, Traffic, wait_until
from fedpft.storage.output import package_versions, write_json

CONFIG = "experiments/configs/digits_vit.yaml"
RESULT = Path("experiments/results/simulation/nodes.json")
PORT = 6379
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
}
COUNT_NODES = """
import ray, time
ray.init("{address}", log_to_driver=False)
deadline = time.monotonic() + 120
while sum(node["Alive"] for node in ray.nodes()) < {count}:
    assert time.monotonic() < deadline
    time.sleep(0.2)
"""
FEDPFT = (sys.executable, "-m", "fedpft.cli")


@contextmanager
def ray_nodes(count: int) -> Iterator[list[Machine]]:
    """Run a Ray cluster of so many machines with one CPU each; the first one is its head."""
    ray = (str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", "--num-gpus=0")
    quiet = {"env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with Machines(count) as machines:
        head, *workers = machines
        address = f"{head.ip}:{PORT}"
        own = (f"--node-ip-address={head.ip}", f"--port={PORT}", "--include-dashboard=false")
        head.start([*ray, "--head", *own, "--object-store-memory=150000000"], **quiet)
        wait_until(lambda: _head_listens(head), 120, "Ray's head")
        for machine in workers:
            join = (f"--address={address}", f"--node-ip-address={machine.ip}")
            machine.start([*ray, *join, "--object-store-memory=150000000"], **quiet)
        if head.start([sys.executable, "-c", COUNT_NODES.format(count=count, address=address)], **quiet).wait():
            raise TimeoutError(f"{count} Ray nodes: not within 120 s")
        yield machines


def run_on_nodes(
    machines: Sequence[Machine],
    folder: Path,
    overrides: Sequence[str],
    after_round: Callable[[int], None] = lambda round_index: None,
) -> tuple[str, list[list[Traffic]]]:
    """Run the config from the head, an actor on each node; return the screen and each machine's traffic a round.

    Args:
        machines: a Ray cluster; the first one runs the driver.
        folder: of the run.
        overrides: `key=value`.
        after_round: called when a round is in the log, while the next one runs.

    Raises:
        RuntimeError: the run failed; its screen.

    """
    address = f"{machines[0].ip}:{PORT}"
    command = [*_command(folder, [*overrides, f"pool.actors={len(machines)}"]), "--address", address]
    log = folder / "rounds.jsonl"
    counts: list[list[Traffic]] = []
    with tempfile.TemporaryFile("w+") as screen:
        driver = machines[0].start(command, env=ENVIRONMENT, stdout=screen, stderr=subprocess.STDOUT)
        while driver.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) > len(counts):
                counts.append([machine.traffic() for machine in machines if machine.holder.poll() is None])
                after_round(len(counts))
            time.sleep(0.01)
        screen.seek(0)
        said = screen.read()
    if driver.returncode:
        raise RuntimeError(said)
    return said, [[n.since(b) for b, n in zip(*pair, strict=False)] for pair in pairwise(counts)]


def run_here(folder: Path, overrides: Sequence[str]) -> None:
    """Run the same config on this machine alone, without Ray."""
    subprocess.run(
        _command(folder, [*overrides, "pool.kind=sequential"]), env=ENVIRONMENT, check=True, capture_output=True
    )


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def rounds(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def main() -> None:
    overrides = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_here(folder / "here", overrides)
        with ray_nodes(3) as machines:
            _, traffic = run_on_nodes(machines, folder / "nodes", overrides)
        lost: list[float] = []
        with ray_nodes(3) as machines:

            def lose_one(round_index: int) -> None:
                if round_index == 2:
                    time.sleep(0.2)  # into the third round
                    machines[2].switch_off()
                    lost.append(time.perf_counter())

            said, _ = run_on_nodes(machines, folder / "lost", overrides, lose_one)
        log = rounds(folder / "nodes")
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            RESULT,
            {
                "config": CONFIG,
                "overrides": overrides,
                "rounds": len(log),
                "same_bits_on_three_nodes": adapter(folder / "nodes") == adapter(folder / "here"),
                "same_bits_with_one_lost": adapter(folder / "lost") == adapter(folder / "here"),
                "round_seconds": [round(line["seconds"], 2) for line in log],
                "round_seconds_with_one_lost_in_the_third": [round(r["seconds"], 2) for r in rounds(folder / "lost")],
                "adapters_up_bytes_a_round": log[0]["comm/bytes_up"],
                "on_the_wire_a_round": {
                    f"node {index}": {
                        field: statistics.median(getattr(each[index], field) for each in traffic)
                        for field in Traffic._fields
                    }
                    for index in range(3)
                },
                "said_of_the_lost_node": [line for line in said.splitlines() if "pool:" in line],
                "versions": package_versions(),
            },
        )
    print(RESULT.read_text())


def _command(folder: Path, overrides: Sequence[str]) -> list[str]:
    return [*FEDPFT, "run", CONFIG, f"output_dir={folder}", "tracking.wandb=disabled", *overrides]


def _head_listens(head: Machine) -> bool:
    probe = f"import socket; socket.create_connection(({head.ip!r}, {PORT}), 1)"
    return head.start([sys.executable, "-c", probe], stderr=subprocess.DEVNULL).wait() == 0


if __name__ == "__main__":
    main()
