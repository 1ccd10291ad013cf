"""The output folder: claimed once, files written whole or not at all."""

import importlib.metadata
import json
import platform
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedpft.config import ConfigError

ROUNDS_FILE = "rounds.jsonl"
"""A folder with this file holds a run."""

PARTITION_FILE = "partition.json"
"""Labels of each client's examples, counted; see `data.histogram.partition_table`."""

WRITTEN_LATER = ("adapter", "checkpoints", "fm", "result.json", "sub_fm", "sub_fm_adapter")
"""What a run puts beside it."""


def claim_output_dir(output_dir: Path, marker: str = ROUNDS_FILE) -> Path:
    """Create the folder for a new run; a folder that already holds a run is moved to `NAME.1`, `NAME.2`, ...

    Args:
        output_dir: the folder.
        marker: the file by which a folder is known to hold what must be kept.

    Raises:
        ConfigError: the folder cannot be written.

    """
    output_dir = output_dir.resolve()
    try:
        if (output_dir / marker).exists():
            number = 1
            while (kept := output_dir.with_name(f"{output_dir.name}.{number}")).exists():
                number += 1
            output_dir.rename(kept)
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: {_unwritable(output_dir)}; {error}") from None
    return output_dir


def check_writable(output_dir: Path) -> None:
    """Try whether the folder exists or could be created and written, and leave nothing behind.

    Raises:
        ConfigError: it cannot.

    """
    try:
        existing = next(folder for folder in (output_dir, *output_dir.resolve().parents) if folder.exists())
        tempfile.TemporaryDirectory(dir=existing).cleanup()  # permissions alone do not tell of full or odd file systems
    except OSError as error:
        raise ConfigError(f"output_dir: {_unwritable(output_dir)}; {error.strerror}") from None


def check_claimable(output_dir: Path) -> None:
    """Look whether a new run can have the folder: writable, new or a run's, or nothing in it that would be overwritten.

    Raises:
        ConfigError: it cannot.

    """
    check_writable(output_dir)
    taken = [name for name in WRITTEN_LATER if (output_dir / name).exists()]
    if taken and not (output_dir / ROUNDS_FILE).exists():
        found = f"{str(output_dir)!r} with {', '.join(taken)} but no {ROUNDS_FILE}"
        raise ConfigError(f"output_dir: found {found}, allowed: a new folder, or one of a run")


def cut_rounds(output_dir: Path, rounds_done: int) -> list[dict[str, Any]]:
    """Cut off what rounds.jsonl has after round `rounds_done`, half a line included, atomically; return the rest."""
    path = output_dir / ROUNDS_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines, records = text.splitlines(keepends=True), []
    for line in lines:
        try:
            record = json.loads(line) if line.endswith("}\n") else None
        except ValueError:
            record = None
        if record is None or record["round"] > rounds_done:
            break
        records.append(record)
    kept = lines[: len(records)]
    if len(kept) != rounds_done:
        warnings.warn(f"{path}: found {len(kept)} lines of {rounds_done} rounds done, the rest is lost", stacklevel=2)
    _replace(path, "".join(kept))
    return records


def _unwritable(output_dir: Path) -> str:
    return f"found {str(output_dir)!r}, allowed: a folder that can be written"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    _replace(path, json.dumps(content, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def machine() -> dict[str, Any]:
    """Return on what the last bits of a number depend besides the config, here: versions, processors."""
    return package_versions() | {
        "CPU instructions": torch.backends.cpu.get_cpu_capability(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def package_versions() -> dict[str, str]:
    """Return the versions that a number depends on."""
    names = ("fedpft", "torch", "lightning", "transformers", "peft", "datasets", "ray", "numpy", "pillow")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
