"""Which settings a resumed run may change: where it runs and who watches, nothing that the result depends on."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from typing import Any

from fedpft.config.flat import flat_settings
from fedpft.config.run import Config

HARMLESS = (
    "config_version", "name", "output_dir", "pool.kind", "pool.actors", "pool.address", "pool.cpus_per_actor",
    "pool.gpus_per_actor", "pool.memory_per_actor_gigabytes",
    "pool.max_retries", "pool.client_timeout_seconds", "pool.start_timeout_seconds", "pool.max_actor_memory_gigabytes",
    "pool.gpu_gigabytes", "federated.allow_dropped", "server.gpu_gigabytes", "server.num_gpus",
    "task.data", "cache.*", "checkpoint.*", "tracking.*",
)  # fmt: skip
"""Keys (patterns) without influence on the numbers of a run."""

HARMLESS_ON_CPU = ("pool.clients_per_batch",)
"""The same where both runs' clients train on a CPU in float32: there each gets the bits that it gets alone."""


def changed_settings(saved: Mapping[str, Any], config: Config) -> list[str]:
    """Return `key: saved -> now` for every setting that differs and is not harmless.

    Args:
        saved: a config's `asdict`, maybe after a trip through JSON.
        config: what is wanted now.

    """
    before, now = flat_settings(saved), flat_settings(asdict(config))
    harmless = HARMLESS + (HARMLESS_ON_CPU if _trains_on_cpu(before) and _trains_on_cpu(now) else ())
    return [
        f"{key}: {before.get(key, 'not set')} -> {now.get(key, 'not set')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(fnmatch(key, pattern) for pattern in harmless)
    ]


def _trains_on_cpu(settings: Mapping[str, str]) -> bool:
    """Whether clients certainly train on a CPU in float32, by flat settings; `auto` without Ray may find a GPU."""
    kind, gpus, accelerator, precision = (
        json.loads(settings.get(f"pool.{name}", "null"))
        for name in ("kind", "gpus_per_actor", "accelerator", "precision")
    )
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and kind == "ray" and gpus == 0)
    is_float32 = settings.get("fm.dtype", '"float32"') == '"float32"'
    return on_cpu and precision == "32-true" and is_float32


def own_settings(config: Config) -> dict[str, Any]:
    """Return the settings that are not the defaults, in their sections, tuples as lists."""
    return _difference(asdict(config), asdict(Config()))


def _difference(section: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ; free-form sections (`fm.config`) have no defaults."""
    different: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            if inner := _difference(value, defaults.get(key, {})):
                different[key] = inner
        elif key not in defaults or value != defaults[key]:
            different[key] = list(value) if isinstance(value, tuple) else value
    return different
