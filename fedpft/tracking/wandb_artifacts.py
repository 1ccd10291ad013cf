"""A run's artifacts in W&B, a chain.

It is `fm-DIGEST`, which the run used, `sub-fm-DIGEST`, which it made from that and used, and `NAME-adapter`. Of FM
and sub-FM W&B gets the digest and some facts, never weights: they are the server's secret. Of the others it sends the
copies in `output_dir/wandb/*run-*/files/`: what another run has put where this one was is never read.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpft.config import Config
from fedpft.tracking.lineage import digests, models

ARTIFACT_TYPES = {"adapter": "model", "result": "result"}
"""Files of a run that become W&B artifacts -> their type; no other file, the sub-FM included, is handed to W&B."""

_SHOWN_DIGITS = 12  # of a digest, in an artifact's name


def log_artifacts(run: Any, config: Config, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Log what a run used and made.

    Args:
        run: W&B's.
        config: the run's.
        result: its `result.json`.
        files: what it has written, by name.

    """
    import wandb

    for model in models(result, config):
        _log_model(run, **model)
    lineage = {key: value for key, value in digests(result).items() if value}
    name = re.sub(r"[^\w.-]+", "-", config.name)
    for key, kind in ARTIFACT_TYPES.items():
        if key not in files:
            continue
        artifact = wandb.Artifact(f"{name}-{key}", type=kind, metadata=lineage)
        copied = _copy(run, files[key])
        add = artifact.add_dir if copied.is_dir() else artifact.add_file
        add(str(copied), policy="immutable")  # no third copy on this disk
        run.log_artifact(artifact)


def _copy(run: Any, source: Path) -> Path:
    """Copy a file or folder among the run's files, from which W&B sends them; return where it is there."""
    folder = Path(run.dir)
    copied = folder / source.name
    if source.is_dir():
        shutil.copytree(source, copied, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, copied)
    for file in [copied, *sorted(copied.rglob("*"))]:
        if file.is_file():
            run.save(file, base_path=folder, policy="end")
    return copied


def _log_model(run: Any, kind: str, digest: str, facts: Mapping[str, Any], *, is_input: bool) -> None:
    """Log an artifact that names a model, holds none of its weights, and is used by this run.

    `Run.use_artifact` refuses offline what `wandb sync` would send: it logs a new artifact by this call, and waits.
    """
    import wandb

    artifact = wandb.Artifact(f"{kind}-{digest[:_SHOWN_DIGITS]}", type=kind, metadata={"digest": digest, **facts})
    artifact.add_reference(f"fedpft://{kind}/{digest}", name=kind, checksum=False)
    run._log_artifact(artifact, is_user_created=is_input, use_after_commit=True)
