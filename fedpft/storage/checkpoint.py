"""A run's whole state between two rounds, on disk: atomic, checked, never pickled.

    output_dir/checkpoints/round-0007/
        adapter.safetensors    the global adapter
        proxy.safetensors      the proxy's tensors; a hard link to the checkpoint before while its version is the same
        arrays.safetensors     what the server's optimiser and aggregator remember, if they do
        state.json             all else, with a checksum of every file and of itself

A checkpoint is written under a temporary name, flushed to the disk and renamed, so that it is there whole or not at
all; the newest two stay. What is not here is no state: local optimisers live for one fit, activation counts for the
round that aligns, and every random draw derives from the seed and the round. A part of a run that does have more to
remember puts it into `RunCheckpoint.extra`.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

FORMATS = {False: 1, True: 2}
"""Whether there are arrays -> format: a version that knows none shall not go on without them."""
FOLDER = "checkpoints"
"""In a run's `output_dir`."""
NUM_KEPT = 2
_ADAPTER, _PROXY, _STATE = "adapter.safetensors", "proxy.safetensors", "state.json"
_ARRAYS = "arrays.safetensors"
_TENSOR_FIELDS = ("adapter", "proxy", "arrays")


@dataclass(frozen=True, kw_only=True)
class RunCheckpoint:
    """All that a run needs to go on after a round, besides what its config alone gives (data, FM)."""

    server: Mapping[str, Any]
    """The driver's `ServerState` without its adapter: `rounds_done`, `proxy_version`, best evaluation so far, ..."""
    adapter: np.ndarray
    """(P,) float32."""
    proxy: Callable[[], Mapping[str, Tensor]]
    """Gives the proxy's tensors (`Method.saved_proxy`); asked only when `proxy_version` is new."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the server's rule remembers, by name."""
    untuned: Mapping[str, Any]
    """Metrics before the first round."""
    run_id: str = ""
    """The run's name for W&B."""
    align_steps: int = 0
    """Points of the alignments' loss curve so far."""
    seconds: float = 0.0
    """Wall-clock time of the run so far."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved config, as nested dicts."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """On what the last bits of a number depend besides the config: versions, threads, devices."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Room for JSON values of other parts."""

    @property
    def rounds_done(self) -> int:
        """Rounds whose result is in this state."""
        return self.server["rounds_done"]

    @property
    def proxy_version(self) -> int:
        """Grows by one with every change of the proxy's tensors."""
        return self.server["proxy_version"]


class Checkpoints:
    """Writes the checkpoints of one run.

    Args:
        folder: where; created with the first checkpoint.
        interval: rounds between two of them; a changed proxy is always written; 0: write nothing.

    """

    def __init__(self, folder: Path, interval: int) -> None:
        self._folder, self._interval = folder, interval
        self._written: tuple[int, Path, str] | None = None  # the proxy on disk: version, file, checksum
        self._pending: RunCheckpoint | None = None

    def save(self, checkpoint: RunCheckpoint) -> None:
        """Take the state after a round and write it if it is time to; a disk that is full costs only a warning."""
        if not self._interval:
            return
        self._pending = checkpoint
        if checkpoint.rounds_done % self._interval == 0 or not self._has_proxy(checkpoint):
            self._write(checkpoint)

    def flush(self) -> None:
        """Write the newest state if it was not; called when the run ends, for whatever reason.

        An alignment may have been interrupted half-way, so a proxy that is not on disk yet is left alone.
        """
        if self._pending is not None and self._has_proxy(self._pending):
            self._write(self._pending)

    def discard(self) -> None:
        """Delete all of them: the run has its result."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def oldest_round(self) -> int | None:
        """Rounds done in the oldest checkpoint on disk; None: there is none."""
        return min(map(_round, _folders(self._folder)), default=None)

    def _has_proxy(self, checkpoint: RunCheckpoint) -> bool:
        return self._written is not None and self._written[0] == checkpoint.proxy_version

    def _write(self, checkpoint: RunCheckpoint) -> None:
        final = self._folder / f"round-{checkpoint.rounds_done:04d}"
        temporary = self._folder / f"{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            safetensors.numpy.save_file({"adapter": checkpoint.adapter}, temporary / _ADAPTER)
            checksums = {_ADAPTER: _settle(temporary / _ADAPTER)}
            if checkpoint.arrays:
                safetensors.numpy.save_file(dict(checkpoint.arrays), temporary / _ARRAYS)
                checksums[_ARRAYS] = _settle(temporary / _ARRAYS)
            checksums[_PROXY] = self._put_proxy(checkpoint, temporary / _PROXY)
            _write_state(checkpoint, checksums, temporary / _STATE)
            for folder in (final, *(old for old in _folders(self._folder) if _round(old) > checkpoint.rounds_done)):
                shutil.rmtree(folder, ignore_errors=True)  # only what could not be read when the run went on from here
            settle_folder(temporary)
            temporary.rename(final)
            settle_folder(self._folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self._written = None
            newest = next((folder.name for folder in _folders(self._folder)), "none")
            warnings.warn(f"checkpoint not written, the run goes on: {_line(error)}; newest: {newest}", stacklevel=3)
            return
        self._pending = None
        self._written = (checkpoint.proxy_version, final / _PROXY, checksums[_PROXY])
        for old in _folders(self._folder)[NUM_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def _put_proxy(self, checkpoint: RunCheckpoint, path: Path) -> str:
        """Link the proxy's file, or write it if this version is not on disk; return its checksum."""
        if self._written is None or self._written[0] != checkpoint.proxy_version:
            safetensors.torch.save_file(dict(checkpoint.proxy()), path)
            return _settle(path)
        _, source, checksum = self._written
        try:
            os.link(source, path)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, path)
            _settle(path)
        return checksum


def load_newest(folder: Path) -> RunCheckpoint | None:
    """Return the newest checkpoint that is whole, or None; one that is not is skipped with a warning that names it."""
    for candidate in _folders(folder):
        try:
            return _load(candidate)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(f"{candidate}: unusable checkpoint skipped: {_line(error)}", stacklevel=2)
    return None


def _load(folder: Path) -> RunCheckpoint:
    content = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    checksum = content.pop("checksum")
    if checksum != _checksum_of(content):
        raise ValueError(f"{_STATE} was altered")
    if content["format"] not in FORMATS.values():
        raise ValueError(f"format {content['format']}, this version reads {max(FORMATS.values())} and older")
    for name, expected in content["files"].items():
        if _checksum(folder / name) != expected:
            raise ValueError(f"{name} was altered")
    return RunCheckpoint(
        **content["state"],
        adapter=safetensors.numpy.load_file(folder / _ADAPTER)["adapter"],
        arrays=safetensors.numpy.load_file(folder / _ARRAYS) if _ARRAYS in content["files"] else {},
        proxy=partial(safetensors.torch.load_file, folder / _PROXY),
    )


def _write_state(checkpoint: RunCheckpoint, checksums: Mapping[str, str], path: Path) -> None:
    state = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint) if f.name not in _TENSOR_FIELDS}
    content = {"format": FORMATS[bool(checkpoint.arrays)], "files": checksums, "state": state}
    path.write_text(json.dumps(content | {"checksum": _checksum_of(content)}, indent=1) + "\n", encoding="utf-8")
    _settle(path)


def _folders(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    found = [path for path in folder.glob("round-*") if path.name.removeprefix("round-").isdigit()]
    return sorted(found, key=_round, reverse=True)


def _round(folder: Path) -> int:
    return int(folder.name.removeprefix("round-"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _checksum_of(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _settle(path: Path) -> str:
    """Wait until a file is on the disk; return its checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _checksum(path)


def settle_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
