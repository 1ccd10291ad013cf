"""Runs that are compared, read from their folders."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from fedpft.config import ConfigError, load_config
from fedpft.config.compare import HARMLESS
from fedpft.config.flat import flat_settings
from fedpft.config.plugins import adopt
from fedpft.federated.dropped import why_not_counted
from fedpft.metrics.table import METRICS
from fedpft.storage.output import AUDIT_FILE, ENDED_FILE, PARTITION_FILE, ROUNDS_FILE

NEEDED = ("name", "seed", "method", "metric", "metric_goal", "fm", "untuned_fm", "rounds", "num_eval_examples")
"""Keys of `result.json` without which a run cannot be compared; any other may be missing."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a finished run left, or another one has so far."""

    folder: Path
    settings: Mapping[str, str]
    """Dotted key -> JSON of each setting that the numbers depend on, without the seed."""
    result: Mapping[str, Any]
    """The content of result.json; of an unfinished run those keys that its records tell."""
    records: Sequence[Mapping[str, Any]]
    """The lines of rounds.jsonl."""
    partition: Mapping[str, Any] | None
    """`label_names`, `label_histogram`; None: the run recorded none."""
    is_finished: bool = True
    allow_dropped: bool = False
    """Whether it counts although a client never trained."""
    is_elsewhere: bool = False
    """Whether another tool made it: `folder` is its path in W&B then, and only its metric is to be compared."""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.result["seed"]

    @property
    def value(self) -> float:
        """The primary metric of the plugged-in FM after the last round, or the last one that was evaluated."""
        return self.result["fm"]


@dataclass(frozen=True)
class LeftOut:
    """A run that does not count."""

    folder: Path
    reason: str


def telling_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return dotted key -> JSON of each setting that the numbers depend on, without the seed."""
    return {key: value for key, value in flat_settings(config).items() if not _is_harmless(key)}


@cache
def _is_harmless(key: str) -> bool:
    return any(fnmatch(key, pattern) for pattern in ("seed", *HARMLESS))


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """Return the finished runs in these folders, in the folders' order, and those that are left out.

    Left out are unfinished runs, runs without a finite metric or in which a client never trained though that was not
    allowed, and repetitions: same settings, same seed.

    Args:
        folders: each a run's folder, or one with runs anywhere below it.

    Raises:
        ConfigError: a folder without runs, a file that cannot be read, or nothing left to compare.

    """
    places = dict.fromkeys(place.resolve() for folder in folders for place in _run_folders(folder))
    seen: dict[str, Run] = {}
    left_out: list[LeftOut] = []
    for place in places:
        if not (place / "result.json").exists():
            left_out.append(LeftOut(place, f"not finished: {_why_ended(place)}"))
            continue
        run = _read_run(place)
        identity = json.dumps([run.seed, run.settings], sort_keys=True)
        if not math.isfinite(run.value):
            left_out.append(LeftOut(place, f"its {run.result['metric']} is {run.value}"))
        elif reason := why_not_counted(run.result, allow_dropped=run.allow_dropped):
            left_out.append(LeftOut(place, reason))
        elif identity in seen:
            left_out.append(LeftOut(place, f"same settings and seed as {seen[identity].folder}"))
        else:
            seen[identity] = run
    if not seen:
        found = "; ".join(f"{left.folder}: {left.reason}" for left in left_out)
        raise ConfigError(f"RUN_OR_SWEEP_DIR: found no finished run ({found}), allowed: folders with finished runs")
    return list(seen.values()), left_out


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs at or below a folder, in the order of their names."""
    found = False
    for place, below, files in os.walk(folder):
        below.sort()
        if "config.yaml" in files and {ROUNDS_FILE, "result.json"} & set(files):
            below.clear()  # what a run holds is no run
            found = True
            yield Path(place)
    if not found:
        allowed = f"the output_dir of a run (config.yaml, {ROUNDS_FILE}, result.json) or a folder of them"
        raise ConfigError(f"RUN_OR_SWEEP_DIR: found no run in {str(folder)!r}, allowed: {allowed}")


def _read_run(folder: Path) -> Run:
    try:
        config = load_config(folder / "config.yaml")
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.yaml'}: {error}") from None
    (result,) = _read_json(folder / "result.json", whole=True)
    if missing := [key for key in NEEDED if key not in result]:
        raise ConfigError(f"{folder / 'result.json'}: found no {', '.join(missing)}, allowed: what `fedpft run` writes")
    adopt("metric", result["metric"].rpartition("/")[2], METRICS)
    if result["metric"].rpartition("/")[2] not in METRICS:
        found, allowed = repr(result["metric"]), ", ".join(METRICS)
        raise ConfigError(f"{folder / 'result.json'}: metric: found {found}, allowed: {allowed}")
    records = _read_json(folder / ROUNDS_FILE)
    if (folder / AUDIT_FILE).exists():
        (audit,) = _read_json(folder / AUDIT_FILE, whole=True)
        result = {**result, "audit": audit}
    has_partition = (folder / PARTITION_FILE).exists()
    partition = _read_json(folder / PARTITION_FILE, whole=True)[0] if has_partition else None
    settings = telling_settings(asdict(config))
    return Run(
        folder=folder,
        settings=settings,
        result=result,
        records=records,
        allow_dropped=config.federated.allow_dropped,
        partition=partition,
    )


def _why_ended(folder: Path) -> str:
    """Return what an unfinished run left as its reason; it may be running, or have been killed, and have none."""
    try:
        (found,) = _read_json(folder / ENDED_FILE, whole=True)
    except ConfigError:
        return "no result.json"
    return str(found.get("reason", "no result.json"))


def _read_json(path: Path, whole: bool = False) -> list[dict[str, Any]]:
    """Return the objects in a file: the `whole` file's one, or one a line."""
    try:
        text = path.read_text(encoding="utf-8")
        content = [json.loads(part) for part in ([text] if whole else text.splitlines())]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    if not all(isinstance(item, dict) for item in content):
        raise ConfigError(f"{path}: found something else, allowed: JSON objects")
    return content
