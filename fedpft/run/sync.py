"""Sends runs that are over to Weights & Biases from their own records: each is one W&B run, whatever was resumed.

    config.yaml, rounds.jsonl, result.json, adapter/  ->  settings, a row a round, the summary, artifacts
    tracking.json                                         who the run is, and what was sent where

A round is the step of its number, and W&B takes a step once: what was sent before is not sent twice, even where
`tracking.json` was lost. A run in progress is left out, and so is one that W&B has from another way.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedpft.config import Config, ConfigError, TrackingConfig, load_config
from fedpft.metrics.table import Goal
from fedpft.report.fidelity import heat_map
from fedpft.storage.checkpoint import FOLDER
from fedpft.storage.lock import held
from fedpft.storage.output import ROUNDS_FILE, RUN_FILE, new_run_id, run_record, write_json
from fedpft.tracking.wandb import WandbTracker, check_tracking, destination

RESULT, ADAPTER = "result.json", "adapter"


class LeftOutError(Exception):
    """A run that is not sent; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What is new of a run."""

    folder: Path
    config: Config
    run_id: str
    rounds: Sequence[Mapping[str, Any]]
    """Records that were not sent."""
    measured: Sequence[Mapping[str, Any]]
    """Records of the fidelity meter, sent or not."""
    result: Mapping[str, Any] | None
    """None: there is none, or it was sent."""
    sent: Mapping[str, Any]
    """What is remembered once all is sent."""

    @cached_property
    def contents(self) -> str:
        """In words; empty: nothing."""
        numbers = [record["round"] for record in self.rounds]
        parts = ["result and adapter"] if self.result else []
        if numbers:
            parts.insert(0, f"rounds {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"round {numbers[0]}")
        return ", ".join(parts)


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs at or below a folder: a run's own, a sweep's, a suite's; in the order of their names.

    Raises:
        ConfigError: there is none.

    """
    found = False
    for place, below, files in os.walk(folder):
        below.sort()
        if "config.yaml" in files and ROUNDS_FILE in files:
            below.clear()  # what a run holds is no run
            found = True
            yield Path(place)
    if not found:
        allowed = f"the output_dir of a run (it has config.yaml and {ROUNDS_FILE}), or a folder of them"
        raise ConfigError(f"RUN_OR_FOLDER: found no run in {str(folder)!r}, allowed: {allowed}")


def sync(folders: Sequence[Path], *, dry_run: bool = False) -> Iterator[tuple[Path, str, bool]]:
    """Send what is new of the runs in these folders; yield each run's folder, what became of it, whether all is well.

    Args:
        folders: each a run's folder, or one with runs anywhere below it.
        dry_run: send and write nothing, only tell what would be sent.

    Raises:
        ConfigError: a folder without runs, or W&B has no key.

    """
    places = list(dict.fromkeys(place.resolve() for folder in folders for place in run_folders(folder)))
    if not dry_run:
        check_tracking(_online(TrackingConfig()))
    for place in places:
        try:
            if dry_run:
                contents = pending(place).contents
                yield place, f"would send {contents}" if contents else "nothing new", True
                continue
            with held(place, "sync"):
                parcel = pending(place)
                yield place, f"sent {parcel.contents} to {_send(parcel)}" if parcel.contents else "nothing new", True
        except (LeftOutError, ConfigError) as reason:
            yield place, f"left out: {reason}", isinstance(reason, LeftOutError)
        except Exception as error:  # of W&B or the network: the next run may have more luck
            lines = str(error).strip().splitlines()
            yield place, f"failed: {': '.join([type(error).__name__, *lines[:1]])}", False


def pending(folder: Path) -> Parcel:
    """Return what is new of a run; nothing is written.

    Raises:
        LeftOutError: W&B has the run from another way.
        ConfigError: its settings cannot be read.

    """
    config = load_config(folder / "config.yaml")
    record = run_record(folder)
    run_id = record.get("run_id") or _older_run_id(folder) or new_run_id()
    _check_not_there(folder, run_id)
    before = record.get("sent", {}).get(destination(config.tracking), {})
    records = _records(folder / ROUNDS_FILE)
    rounds = [line for line in records if line["round"] > before.get("rounds", 0)]
    result = json.loads((folder / RESULT).read_text(encoding="utf-8")) if (folder / RESULT).exists() else None
    digest = _digest(folder) if result is not None else None
    sent = {"rounds": max([before.get("rounds", 0), *(line["round"] for line in records)]), "result": digest}
    return Parcel(
        folder=folder,
        config=config,
        run_id=run_id,
        rounds=rounds,
        measured=[line for line in records if "fidelity" in line],
        result=result if digest != before.get("result") else None,
        sent=sent,
    )


def _send(parcel: Parcel) -> str:
    """Send a parcel, wait until W&B has it, and remember it; return where it is."""
    config, folder = parcel.config, parcel.folder
    config = replace(config, tracking=_online(config.tracking))
    write_json(folder / RUN_FILE, run_record(folder) | {"run_id": parcel.run_id})  # before anybody else knows it
    goals: Iterator[Goal] = (
        line["metric_goal"] for line in (parcel.result or {}, *parcel.rounds) if "metric_goal" in line
    )
    goal: Goal = next(goals, "max")
    with tempfile.TemporaryDirectory() as temporary:
        tracker = WandbTracker(config, Path(temporary), parcel.run_id, goal, replay=True)
        place = tracker.locations["wandb"]
        try:
            _tell(parcel, tracker)
        except BaseException:
            tracker.fail()
            raise
    record = run_record(folder)
    sent = record.get("sent", {}) | {destination(config.tracking): parcel.sent}
    write_json(folder / RUN_FILE, record | {"sent": sent})
    return place


def _tell(parcel: Parcel, tracker: WandbTracker) -> None:
    for line in parcel.rounds:
        is_last = line is parcel.rounds[-1] and parcel.measured
        tracker.log_past(line, {"fidelity/heat_map": heat_map(parcel.measured)} if is_last else {})
    if parcel.result is None:
        tracker.stop()
        return
    files = {"adapter": parcel.folder / ADAPTER, "result": parcel.folder / RESULT}
    tracker.finish(parcel.result, {name: path for name, path in files.items() if path.exists()})


def _online(tracking: TrackingConfig) -> TrackingConfig:
    return replace(tracking, to=("wandb",), wandb="online")


def _records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of rounds.jsonl up to the first that is not whole."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            break
    return records


def _older_run_id(folder: Path) -> str | None:
    """Return the id of a run that a version without :data:`RUN_FILE` began: of its checkpoint, or of its W&B folder."""
    for state in sorted(folder.glob(f"{FOLDER}/round-*/state.json")):
        found = re.search(r'"run_id": "(\w+)"', state.read_text(encoding="utf-8"))
        if found:
            return found[1]
    names = [path.name for path in sorted(folder.glob("wandb/offline-run-*"))]
    return names[0].rpartition("-")[2] if names else None


def _check_not_there(folder: Path, run_id: str) -> None:
    if any(folder.glob(f"wandb/run-*-{run_id}")):
        raise LeftOutError("it was sent while it ran")
    if any(folder.glob("wandb/offline-run-*/*.wandb.synced")):
        raise LeftOutError("`wandb sync` has sent it")


def _digest(folder: Path) -> str:
    """Return a digest of the result and the adapter."""
    hashed = hashlib.blake2b(digest_size=16)
    for path in [folder / RESULT, *sorted((folder / ADAPTER).rglob("*"))]:
        if path.is_file():
            hashed.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return hashed.hexdigest()
