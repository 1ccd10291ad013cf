"""Our pool, driver and client code on the peers' workloads; prints the peers' JSON line. See README.md.

    python -m experiments.benchmarks.simulation.ours PEERS --workload overhead --rounds 5

PEERS is the folder with the peers' `common.py`. Everything of a round that a run has is in it: sampling, plan, clients,
checks, aggregation, the record, its line in `rounds.jsonl`. There is nothing to evaluate.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", type=Path)
    parser.add_argument("--workload", choices=["minilm", "overhead", "typical"], required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--actors", type=int, default=2, help="0: clients train in the driver, without Ray")
    parser.add_argument("--clients", type=int, help="define so many, and draw them as a run does; default: the peers'")
    default = os.environ.get("TOGETHER", "1")
    parser.add_argument("--together", default=default, help="clients in one forward pass, or auto; default: $TOGETHER")
    numbers = os.environ.get("NUMBERS", "float32")
    kinds = ["float32", "bf16", "bf16w"]
    parser.add_argument("--numbers", default=numbers, choices=kinds, help="w: frozen weights, too; default: $NUMBERS")
    options = parser.parse_args()
    sys.path.insert(0, str(options.peers))
    os.environ["PYTHONPATH"] = f"{options.peers}:{ROOT}"  # the actors' as well
    play(options.workload, options.rounds, options.actors, options.clients, options.together, options.numbers)


def play(workload: str, rounds: int, num_actors: int, num_clients: int | None, together: str, numbers: str) -> None:
    """Play `rounds` rounds and one to warm up, and measure them as the peers do."""
    import common

    meter = common.Meter(f"fedpft, {together} together, {numbers}", workload)
    meter.total = rounds + 1
    import numpy as np
    import torch

    from experiments.benchmarks.simulation.workload import make_package
    from fedpft.config import FederatedConfig, PoolConfig
    from fedpft.federated import driver
    from fedpft.federated.observer import SilentObserver
    from fedpft.federated.pool import SequentialPool
    from fedpft.federated.sampling import Attendance
    from fedpft.models.lora import get_adapter
    from fedpft.models.weights import unpack_model
    from fedpft.simulation.pool.ray_pool import RayClientPool
    from fedpft.tracking.trackers import JsonlTracker

    def peers_cohort(
        config: FederatedConfig, sizes: np.ndarray, seed: int, round_index: int, losses: dict[int, float]
    ) -> Attendance:
        return Attendance(cohort=dict.fromkeys(sorted(common.sample(workload, round_index - 1)), 1))

    if num_clients is None and workload != "typical":
        driver.draw_attendance = peers_cohort
    torch.set_num_threads(1)
    task: dict[str, Any] = common.WORKLOADS[workload]
    pool = RayClientPool(PoolConfig(actors=num_actors), task["sampled"]) if num_actors else SequentialPool()
    package = make_package(workload, num_clients, together if together == "auto" else int(together), numbers)
    pool.broadcast(package)
    start = get_adapter(unpack_model(package.proxy))
    with tempfile.TemporaryDirectory() as folder:
        tracker = JsonlTracker(Path(folder))
        made = driver.Driver(
            config=FederatedConfig(
                num_clients=package.partition.num_clients,
                clients_per_round=task["sampled"],
                rounds=rounds + 2,  # the last one, which is not played, would evaluate
                lr=task["lr"],
                lr_schedule="constant",
            ),
            seed=0,
            partition=package.partition,
            num_neurons=(),
            method=SimpleNamespace(wants_counts=lambda round_index, num_rounds: False),
            pool=pool,
            evaluate=lambda adapter: {},
            evaluation_interval=rounds + 2,
            tracker=tracker,
            observer=SilentObserver(),
        )
        state = driver.ServerState(rounds_done=0, adapter=start)
        meter.mark()
        for _ in range(rounds + 1):
            state = made.run_round(state)
            meter.mark()
        tracker.fail()
        records = [json.loads(line) for line in (Path(folder) / "rounds.jsonl").read_text().splitlines()][1:]
    held = {
        f"{process}_rss_mb": round(max(record[f"memory/{key}"] for record in records) / 2**20)
        for process, key in (("driver", "driver_rss_bytes"), ("actor", "actor_rss_bytes_max"))
        if f"memory/{key}" in records[0]
    }
    meter.extra = {
        "clients_defined": package.partition.num_clients,
        "actor_utilisation": round(statistics.median(record["time/actor_utilisation_mean"] for record in records), 3),
        **held,
    }
    meter.finish([state.adapter], [start])
    pool.close()


if __name__ == "__main__":
    main()
