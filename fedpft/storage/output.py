"""The output folder: claimed once, files written whole or not at all."""

import importlib.metadata
import json
import platform
import secrets
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedpft.config import ConfigError
from fedpft.storage.whole import written_whole

ROUNDS_FILE = "rounds.jsonl"
"""A folder with this file holds a run."""

AUDIT_FILE = "audit.json"
"""What `fedpft audit` measured."""

PARTITION_FILE = "partition.json"
"""Labels of each client's examples, counted; see `data.histogram.partition_table`."""

RUN_FILE = "tracking.json"
"""Who the run is to trackers: `run_id`; and what `fedpft sync` has sent of it."""

ENDED_FILE = "ended.json"
"""Why a run ended without a result: `kind` (`failed`, `interrupted`), `reason`, `time`."""

JOB_FOLDER = "run_folder"
"""What a submitted job tells a Ray cluster of itself under this name: its run's folder."""

_SHOWN_NAMES = 4


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a folder holds, and which of its entries are of that kind: what is not is the user's, and never touched."""

    what: str
    """In one word."""
    marker: str
    """The entry by which such a folder is known."""
    others: tuple[str, ...]
    """All other entries that may be written."""
    is_shared: bool = False
    """Whether it may be written beside a user's own files, as long as none has such a name."""

    @property
    def entries(self) -> tuple[str, ...]:
        """All that may be written."""
        return (self.marker, *self.others)


RUN = Kind(
    what="run",
    marker=ROUNDS_FILE,
    others=(
        *("adapter", AUDIT_FILE, "checkpoints", "config.yaml", ENDED_FILE, "examples.safetensors", "export", "fm"),
        *(PARTITION_FILE, "report.html", "result.json", "sub_fm", "sub_fm_adapter", "wandb"),
        *("csv", "mlflow", "tensorboard", RUN_FILE),
    ),
)


def claim_output_dir(output_dir: Path, kind: Kind = RUN, say: Callable[[str], None] = lambda line: None) -> Path:
    """Create the folder, or empty one of the same kind: its entries are moved to `NAME.1`, `NAME.2`, ...

    Args:
        output_dir: the folder.
        kind: what will be in it.
        say: takes a line about what was moved.

    Raises:
        ConfigError: see :func:`check_claimable`.

    """
    check_claimable(output_dir, kind)
    output_dir = output_dir.resolve()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if (output_dir / kind.marker).exists():
            number = 1
            while (kept := output_dir.with_name(f"{output_dir.name}.{number}")).exists():
                number += 1
            kept.mkdir()
            # the marker last: a folder whose move was cut short is still known for what it is
            for name in (*kind.others, kind.marker):
                if (output_dir / name).exists():
                    (output_dir / name).rename(kept / name)
            left = _foreign(output_dir, kind)
            stays = f"; not moved: {_listed(left)}" if left else ""
            if (kept / "wandb").exists():  # whose record names their files by the whole path
                stays += "; `fedpft sync` sends it to W&B, `wandb sync` leaves its artifacts out"
            say(f"{output_dir}: the {kind.what} that was there is now {kept}{stays}")
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


def check_claimable(output_dir: Path, kind: Kind = RUN) -> None:
    """Look whether the folder can be had: writable; new, empty or one of the same kind, and what is there can be moved.

    Raises:
        ConfigError: it cannot.

    """
    check_writable(output_dir)
    if not output_dir.exists():
        return
    if (output_dir / kind.marker).exists():
        check_writable(output_dir.resolve().parent)
        if output_dir.resolve().parent.stat().st_dev != output_dir.stat().st_dev:
            found = f"{str(output_dir)!r} with a {kind.what} that cannot be moved to another file system"
            raise ConfigError(f"output_dir: found {found}, allowed: a folder in it, or a new one")
        return
    foreign = _foreign(output_dir, kind)
    taken = foreign if not kind.is_shared else []
    taken += [name for name in kind.entries if (output_dir / name).exists()]
    if taken:
        found = f"{str(output_dir)!r} with {_listed(taken)} but no {kind.marker}"
        raise ConfigError(f"output_dir: found {found}, allowed: a new or empty folder, or one of a {kind.what}")


def _foreign(output_dir: Path, kind: Kind) -> list[str]:
    """Return what is not of the kind; hidden entries do not count, nor what a file system has of its own."""
    names = sorted(path.name for path in output_dir.iterdir())
    return [name for name in names if not name.startswith(".") and name not in (*kind.entries, "lost+found")]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"


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
    write_text(path, "".join(kept))
    return records


def _unwritable(output_dir: Path) -> str:
    return f"found {str(output_dir)!r}, allowed: a folder that can be written"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def run_record(output_dir: Path) -> dict[str, Any]:
    """Return the content of :data:`RUN_FILE`; nothing where it is missing or was damaged."""
    try:
        found = json.loads((output_dir / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def new_run_id() -> str:
    """Return a name for a run that no other has."""
    return secrets.token_hex(4)


def machine() -> dict[str, Any]:
    """Return on what the last bits of a number depend besides the config, here: versions, processors."""
    import torch  # here, so that a command that only looks at folders does not pay for it

    return package_versions() | {
        "CPU": cpu_model(),
        "CPU instructions": torch.backends.cpu.get_cpu_capability(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def cpu_model() -> str:
    """Return what the processor is called, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    named = (
        value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == "model name"
    )
    return next(filter(None, named), "") or platform.processor() or platform.machine()


def package_versions() -> dict[str, str]:
    """Return the versions that a number depends on."""
    names = ("fedpft", "torch", "lightning", "transformers", "peft", "datasets", "ray", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


@cache
def _version(name: str) -> str:
    """Return a package's version; looked for once, because that reads folders and files."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
