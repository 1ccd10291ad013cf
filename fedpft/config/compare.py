"""Which settings a resumed run may change: where it runs and who watches, nothing that the result depends on."""

from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from typing import Any

from fedpft.config.flat import flat_settings
from fedpft.config.run import Config

HARMLESS = (
    "name", "output_dir", "pool.kind", "pool.actors", "pool.address", "pool.cpus_per_actor", "pool.gpus_per_actor",
    "pool.memory_per_actor_gigabytes",
    "pool.max_retries", "pool.client_timeout_seconds", "pool.start_timeout_seconds", "pool.max_actor_memory_gigabytes",
    "federated.allow_dropped", "server.num_gpus", "cache.*", "checkpoint.*", "tracking.*",
)  # fmt: skip
"""Keys (patterns) without influence on the numbers of a run."""


def changed_settings(saved: Mapping[str, Any], config: Config) -> list[str]:
    """Return `key: saved -> now` for every setting that differs and is not harmless.

    Args:
        saved: a config's `asdict`, maybe after a trip through JSON.
        config: what is wanted now.

    """
    before, now = flat_settings(saved), flat_settings(asdict(config))
    return [
        f"{key}: {before.get(key, 'not set')} -> {now.get(key, 'not set')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(fnmatch(key, pattern) for pattern in HARMLESS)
    ]
