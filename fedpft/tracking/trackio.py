"""A run in Trackio, the only importer of trackio: rows in a project's SQLite database, in Trackio's own folder.

    $TRACKIO_DIR, else trackio/ in Hugging Face's cache        trackio show --project fedpft

Trackio's `init` and `log` know a run by its name alone, print, and only warn of what they cannot write. So rows go
straight to its storage, as its importers' do: that knows a run by its id, raises, and takes no row's id twice.
"""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from fedpft.config import Config, reported_name
from fedpft.config.flat import flat_settings
from fedpft.tracking.loggers import LoggerTracker, Start
from fedpft.tracking.names import result_metrics


class TrackioTracker(LoggerTracker):
    """A `Tracker`: one Trackio run with settings and numbers; what it has of before a resume stays as it is."""

    def __init__(self, config: Config, output_dir: Path, start: Start) -> None:
        self._config, self._run_id = config, start.run_id or uuid.uuid4().hex
        super().__init__(self._rows, {"trackio": os.environ.get("TRACKIO_DIR") or str(Path(HF_HOME, "trackio"))})

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Log the result's numbers as `result/*`."""
        self._rows("result").log_metrics(result_metrics(result), result.get("rounds", 0))

    def _rows(self, kind: str) -> "_Rows":
        return _Rows(self._config, self._run_id, kind)


class _Rows:
    """Rows of one kind, of which each step has one."""

    def __init__(self, config: Config, run_id: str, kind: str) -> None:
        self._run: dict[str, Any] = {"project": config.tracking.project, "run": config.name, "run_id": run_id}
        self._prefix, self._settings = f"{run_id}/{kind}", _settings(config)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write a row, the first with the settings."""
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.validate_project_name(self._run["project"])
        ids = [f"{self._prefix}/{step}"]
        SQLiteStorage.bulk_log(
            **self._run, metrics_list=[dict(metrics)], steps=[step], log_ids=ids, config=self._settings
        )
        self._settings = None

    def finalize(self, status: str) -> None:
        """Do nothing: each row is written at once, and Trackio's runs have no end."""


def _settings(config: Config) -> dict[str, Any] | None:
    """Return the settings by dotted keys; Trackio's page groups runs by `_Group`."""
    flat = {key: json.loads(value) for key, value in flat_settings(asdict(config.shown())).items()}
    return {**flat, "fedpft.method": reported_name(config.method, config.align), "_Group": config.tracking.group}
