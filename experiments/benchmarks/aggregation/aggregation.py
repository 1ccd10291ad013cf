"""Time and memory of every aggregator, at 100 and 1000 updates of an adapter of the quickstart's size.

    OMP_NUM_THREADS=1 python experiments/benchmarks/aggregation/aggregation.py [FILE.json]

An adapter is that of MiniLM with rank 8: 24 modules of 384 x 384, and a head. A tenth of the clients is taken for bad
where a rule asks for a number. Memory is what NumPy allocates beside the updates as they arrive.
"""

import json
import os
import platform
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

from fedpft.config import FederatedConfig, load_config
from fedpft.config.algorithms import AGGREGATORS
from fedpft.federated.server_rule import server_rule

WIDTH, RANK, MODULES = 384, 8, 24
LAYOUT = (
    ("head.modules_to_save.weight", (3544,)),
    *((f"{i}.lora_A.weight", (RANK, WIDTH)) for i in range(MODULES)),
    *((f"{i}.lora_B.weight", (WIDTH, RANK)) for i in range(MODULES)),
)
SIZE = 3544 + 2 * MODULES * RANK * WIDTH
RESULT = Path(__file__).parents[2] / "results/aggregation.json"


def measure(n: int, *settings: str) -> dict[str, float]:
    """Return seconds to take all updates and to finish, and the peak of what was allocated."""
    config: FederatedConfig = load_config(None, [*_cohort(n), *settings]).federated
    rule = server_rule(config, LAYOUT).aggregator
    rng = np.random.default_rng(0)
    start = rng.normal(size=SIZE, scale=0.02).astype(np.float32)
    direction = rng.normal(size=SIZE, scale=1e-3).astype(np.float32)
    tracemalloc.start()
    adding, state = 0.0, rule.init(start, n, {})
    for _ in range(n):
        adapter = start + direction + rng.standard_normal(SIZE, dtype=np.float32) * np.float32(1e-3)
        before = time.perf_counter()
        state = rule.add(state, adapter, 1.0)
        adding += time.perf_counter() - before
    before = time.perf_counter()
    rule.finish(state)
    finishing = time.perf_counter() - before
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"add_seconds": round(adding, 3), "finish_seconds": round(finishing, 3), "peak_megabytes": round(peak / 1e6)}


def _cohort(n: int) -> list[str]:
    return [f"federated.num_clients={n}", f"federated.clients_per_round={n}"]


def main() -> None:
    """Measure everything and write it down."""
    cases = {kind: [f"federated.aggregator.kind={kind}"] for kind in AGGREGATORS}
    cases["lora_aggregation svd"] = ["federated.lora_aggregation=svd"]
    rows = []
    for n in (100, 1000):
        for name, settings in cases.items():
            bad = [f"federated.aggregator.num_byzantine={n // 10}"] if name in AGGREGATORS else []
            rows.append({"aggregator": name, "updates": n, **measure(n, *settings, *bad)})
            print(rows[-1], flush=True)
    content = {
        "numbers_of_an_adapter": SIZE,
        "updates_megabytes": {str(n): round(4 * n * SIZE / 1e6) for n in (100, 1000)},
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
        "rows": rows,
    }
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT
    place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
