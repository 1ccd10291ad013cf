"""What a run in W&B is known by: its tags, and the models from which its adapter descends."""

from collections.abc import Iterator, Mapping
from typing import Any

from fedpft.config import Config, reported_name

_MAX_TAG_LENGTH = 64  # W&B's


def tags(config: Config) -> list[str]:
    """Return the user's tags, the method and the task."""
    tags = [*config.tracking.tags, reported_name(config.method, config.align), config.task.name]
    return list(dict.fromkeys(tag[:_MAX_TAG_LENGTH] for tag in tags if tag))


def digests(result: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the digests of FM and sub-FM; None for one that the run does not have."""
    return {"fm": result.get("fm_digest"), "sub_fm": result.get("construction", {}).get("digest")}


def models(result: Mapping[str, Any], config: Config) -> Iterator[dict[str, Any]]:
    """Yield the models from which the adapter descends, oldest first, as arguments of `WandbTracker._log_model`."""
    found = digests(result)
    if found["fm"]:
        facts = {"path": config.fm.path, "num_params": result["num_params_fm"]}
        yield {"kind": "fm", "digest": found["fm"], "facts": facts, "is_input": True}
    if found["sub_fm"]:
        facts = {"fm": found["fm"], "method": result["method"], "cache_key": result["construction"]["key"]}
        facts |= {"retained_ratio": config.method.retained_ratio}
        facts |= {key: result[key] for key in ("num_params_sub_fm", "compression_ratio")}
        yield {"kind": "sub-fm", "digest": found["sub_fm"], "facts": facts, "is_input": False}
