"""Two nodes with one actor each; one leaves while its actor trains. Prints what became of the round as JSON."""

import json
import tempfile
import threading
import time
import warnings
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from fedpft.config import PoolConfig
from fedpft.simulation.pool import crew
from fedpft.simulation.pool.client_actor import ClientActor
from fedpft.simulation.pool.ray_pool import RayClientPool
from tests.simulation.faulty import PACKAGE, PLAN


def main() -> None:
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head_node = {"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args=head_node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    head = ray.get_runtime_context().get_node_id()
    leaving = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    trains_there = Path(tempfile.mkdtemp()) / "trains"

    class Actor(ClientActor):
        def fit(self, *order):
            if ray.get_runtime_context().get_node_id() != head:
                trains_there.touch()
                time.sleep(1000)
            return super().fit(*order)

    def leave() -> None:
        while not trains_there.exists():
            time.sleep(0.05)
        cluster.remove_node(leaving, allow_graceful=False)

    crew.ClientActor = Actor
    threading.Thread(target=leave, daemon=True).start()
    crew.ROOM_CHECK_SECONDS = 1.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="pool:")
        pool = RayClientPool(PoolConfig(actors=2), clients_per_round=2)
        pool.broadcast(PACKAGE)
        before = pool.num_actors
        updates = sorted(pool.run(PLAN, [0, 1]), key=lambda update: update.attempts)
    found = {
        "attempts": {number: update.attempts for number, update in enumerate(updates)},
        "adapters": {update.client_id: update.adapter.tobytes().hex() for update in updates},
        "actors": [before, pool.num_actors],
        "warnings": [str(warning.message) for warning in caught if "pool:" in str(warning.message)],
    }
    pool.close()
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
