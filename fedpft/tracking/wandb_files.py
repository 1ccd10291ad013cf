"""Runs in files that W&B's client wrote on this machine, offline or while it sent them, by whatever tool.

    wandb/offline-run-TIME-ID/run-ID.wandb

Such a file is LevelDB's log: 7 bytes that name it, then blocks of 32 KiB with pieces of records, each of which is a
message of W&B's protocol. wandb 0.31 has the messages in Python, but no reader of the file.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from fedpft.config import ConfigError
from fedpft.tracking.wandb_runs import WandbRun

_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK, _PIECE_HEADER = 2**15, 7
_WHOLE, _LAST = 1, 4
"""Kinds of pieces with which a record ends; the others are 2, its first, and 3, between."""


def read_wandb_files(folder: Path, metric: str) -> list[WandbRun]:
    """Return the runs that a folder holds, with the curve of a metric; one that was resumed is one run.

    Args:
        folder: of one run, or W&B's with several, or one with any of those right in it.
        metric: its name there; a run that does not log it has no curve.

    Raises:
        ConfigError: there is no file of W&B's, or one that cannot be read.

    """
    files = [found for depth in ("", "*/", "*/*/") for found in sorted(folder.glob(f"{depth}*.wandb"))]
    parts = [_part(file, metric) for file in files if not file.parent.is_symlink()]  # `latest-run` is one more name
    if not parts:
        raise ConfigError(f"--wandb: found {str(folder)!r} without W&B's files, allowed: a folder with run-ID.wandb")
    parts.sort(key=lambda part: (part.path, part.start))
    return [_joined(path, list(same)) for path, same in groupby(parts, key=lambda part: part.path)]


def read_records(file: Path) -> Iterator[Any]:
    """Yield the messages of a `.wandb` file; what a client that was killed left half written is left out.

    Raises:
        ConfigError: it is another kind of file, or damaged.

    """
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made by protobuf at import

    data = file.read_bytes()
    try:
        if not data.startswith(_HEADER):
            raise DecodeError("it does not begin as one")
        for record in _records(data):
            yield Record.FromString(record)
    except DecodeError as error:
        raise ConfigError(f"--wandb: found {str(file)!r}, which is no file of W&B's: {error}; allowed: one") from None


def _records(data: bytes) -> Iterator[bytes]:
    place, begun = len(_HEADER), b""
    while place + _PIECE_HEADER <= len(data):
        if (left := _BLOCK - place % _BLOCK) < _PIECE_HEADER:
            place += left  # no piece begins there
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        place += _PIECE_HEADER + length
        if place > len(data):
            return
        begun += data[place - length : place]
        if kind in (_WHOLE, _LAST):
            yield begun
            begun = b""


@dataclass(kw_only=True)
class _Part:
    """A run from one of its starts on."""

    path: str = ""
    name: str = ""
    start: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    last_step: int = -1
    exit_code: int | None = None


def _part(file: Path, metric: str) -> _Part:
    part = _Part()
    for record in read_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            part.path = "/".join(filter(None, (run.entity, run.project, run.run_id)))
            part.name, part.start = run.display_name or run.run_id, run.start_time.ToNanoseconds() / 1e9
            _update(part.config, run.config.update)
        elif kind == "config":
            _update(part.config, record.config.update)
        elif kind == "summary":
            _update(part.summary, record.summary.update)
        elif kind == "history":
            part.last_step = record.history.step.num
            value = _update({}, record.history.item).get(metric)
            if isinstance(value, int | float):
                part.curve.append((part.last_step, float(value)))
        elif kind == "exit":
            part.exit_code = record.exit.exit_code
    part.config.pop("_wandb", None)
    return part


def _update(values: dict[str, Any], items: Iterable[Any]) -> dict[str, Any]:
    """Put values of W&B's, each under a key or a path of keys."""
    for item in items:
        *path, name = item.nested_key or [item.key]
        section = values
        for key in path:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        section[name] = json.loads(item.value_json)
    return values


def _joined(path: str, parts: list[_Part]) -> WandbRun:
    """Return a run of its starts in their order; offline each counts its steps anew."""
    curve, done = list[tuple[int, float]](), 0
    for part in parts:
        curve += [(done + step, value) for step, value in part.curve]
        done += part.last_step + 1
    states = {None: "running or killed", 0: "finished"}
    return WandbRun(
        path=path,
        name=parts[-1].name,
        state=states.get(parts[-1].exit_code, "failed"),
        config={key: value for part in parts for key, value in part.config.items()},
        summary={key: value for part in parts for key, value in part.summary.items()},
        curve=curve,
    )
