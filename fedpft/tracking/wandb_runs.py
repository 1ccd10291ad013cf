"""Runs that are in Weights & Biases already, whoever made them, read through its public API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpft.config import ConfigError

_TIMEOUT_SECONDS = 30
_MOST_POINTS = 1000
"""Of a curve: of longer ones W&B draws a sample."""


@dataclass(frozen=True, kw_only=True)
class WandbRun:
    """What W&B has of a run."""

    path: str
    """`ENTITY/PROJECT/RUN_ID`."""
    name: str
    state: str
    """W&B's word: running, finished, crashed, failed, killed."""
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    curve: Sequence[tuple[int, float]]
    """`(step, value)` of one metric."""


def read_wandb_run(path: str, metric: str) -> WandbRun:
    """Return a run, with the curve of a metric.

    Args:
        path: `ENTITY/PROJECT/RUN_ID`.
        metric: its name there; a run that does not log it has no curve.

    Raises:
        ConfigError: the path is none, or W&B is out of reach, has no such run, or wants an API key.

    """
    import wandb  # here, so that who reads none does not pay for it
    from wandb.errors import Error

    if len(path.split("/")) != 3 or not all(path.split("/")):
        raise ConfigError(f"--wandb: found {path!r}, allowed: ENTITY/PROJECT/RUN_ID of a run in Weights & Biases")
    try:
        wandb.setup(wandb.Settings(silent=True))
        found = wandb.Api(timeout=_TIMEOUT_SECONDS).run(path)
        lines = found.history(samples=_MOST_POINTS, keys=[metric], pandas=False)
    except (Error, ValueError, OSError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"--wandb: found {path!r}, but W&B says: {said}; allowed: a run that it shows you") from None
    points = [(line["_step"], line[metric]) for line in lines if isinstance(line.get(metric), int | float)]
    return WandbRun(
        path=path,
        name=found.name or path,
        state=found.state,
        config=dict(found.config),
        summary=dict(found.summary_metrics),
        curve=sorted((int(step), float(value)) for step, value in points),
    )
