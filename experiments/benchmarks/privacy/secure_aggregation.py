"""Seconds and bytes of secure aggregation with 100 clients and an adapter of the quickstart's size, step by step.

    OMP_NUM_THREADS=1 python experiments/benchmarks/privacy/secure_aggregation.py [FILE.json]

All clients are played one after the other, so that a client's time is the sum over the clients.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cryptography
import numpy as np
import psutil

from fedpft.federated.secure_aggregation import SecureAggregation, client_bytes
from fedpft.privacy.masking import Party, unmask

CLIENTS, SIZE, EXAMPLES = 100, 151_000, 512
DROPPED = (0, 1, 10)
RESULT = Path(__file__).parents[2] / "results/privacy/secure_aggregation.json"


def timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """Return what the work gives, and note how long it took."""
    before = time.perf_counter()
    made = work()
    seconds[name] = round(time.perf_counter() - before, 3)
    return made


def measure() -> dict[str, Any]:
    """Play a round; return what it took, and how far its mean is from the plain one."""
    settings = SecureAggregation(threshold_ratio=0.5, bound=16.0, most_weight=EXAMPLES)
    threshold, fixed = settings.threshold(CLIENTS), settings.fixed_point(CLIENTS)
    rng, everybody = np.random.default_rng(0), range(CLIENTS)
    updates = rng.normal(size=(CLIENTS, SIZE), scale=1e-3)
    weights = rng.integers(1, EXAMPLES + 1, size=CLIENTS)
    parties = [Party(0, 1, client) for client in everybody]
    seconds: dict[str, float] = {}
    keys = timed(seconds, "keys", lambda: {c: parties[c].public_keys for c in everybody})
    sealed = timed(seconds, "shares", lambda: [parties[c].sealed_shares(keys, threshold) for c in everybody])
    plain = timed(seconds, "fixed point", lambda: [fixed.encode(updates[c], int(weights[c])) for c in everybody])
    masked = timed(seconds, "masks", lambda: [parties[c].mask(plain[c], keys) for c in everybody])
    server = []
    for dropped in DROPPED:
        survivors = frozenset(range(dropped, CLIENTS))
        inbox = {holder: {c: sealed[c][holder] for c in everybody} for holder in survivors}
        step: dict[str, float] = {}
        revealed = timed(
            step,
            "clients reveal",
            lambda inbox=inbox, survivors=survivors: {
                c: parties[c].reveal(inbox[c], keys, survivors, threshold) for c in survivors
            },
        )
        total = timed(step, "server adds", lambda survivors=survivors: sum(masked[c] for c in survivors))
        opened = timed(
            step,
            "server unmasks",
            lambda args=(total, keys, survivors, revealed): unmask(*args, threshold),
        )
        assert (opened == sum(plain[c] for c in survivors)).all(), "the sum is exact"
        alive = sorted(survivors)
        mean = np.average(updates[alive], axis=0, weights=weights[alive])
        error = np.abs(fixed.decode(opened) / weights[alive].sum() - mean).max()
        assert error <= fixed.resolution, "the mean is within a step"
        server.append({"dropped": dropped, "seconds": step, "largest_error": float(error)})
    parts = client_bytes(CLIENTS, SIZE + 1)
    return {
        "threshold": threshold,
        "resolution": fixed.resolution,
        "bytes_of_a_client": {part: {"up": up, "down": down} for part, (up, down) in parts.items()},
        "adapter_bytes": 4 * SIZE,
        "seconds_of_all_clients": seconds,
        "unmask": server,
    }


def main() -> None:
    """Measure, and write it down."""
    content = {
        "clients": CLIENTS,
        "numbers_of_an_adapter": SIZE,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "machine": platform.processor() or platform.machine(),
        "load": f"{psutil.getloadavg()[0]:.1f} processes on {psutil.cpu_count()} cores",
        "cryptography": cryptography.__version__,
        **measure(),
    }
    print(json.dumps(content, indent=1))
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT
    place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
