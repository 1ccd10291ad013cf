"""A run in TensorBoard's event files: `tensorboard/rounds` and `tensorboard/alignments`, each with its own steps."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import TensorBoardLogger

from fedpft.config import Config
from fedpft.config.flat import flat_settings
from fedpft.tracking.loggers import Axis, LoggerTracker, Start
from fedpft.tracking.names import result_metrics

FOLDER = "tensorboard"


class TensorBoardTracker(LoggerTracker):
    """A `Tracker`: a resumed run takes back what its event files have of later rounds than it goes on from.

    The run's end has the settings and the result for TensorBoard's page of hyperparameters.
    """

    def __init__(self, config: Config, output_dir: Path, start: Start) -> None:
        self._config, self._start, self._folder = config, start, output_dir / FOLDER
        super().__init__(self._event_files, {FOLDER: str(self._folder)})

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Log settings and result."""
        settings = flat_settings(asdict(self._config.shown()))
        read = {key: json.loads(value) for key, value in settings.items()}
        self.logger("rounds").log_hyperparams(read, metrics=result_metrics(result), step=result.get("rounds"))
        super().finish(result, files)

    def _event_files(self, axis: Axis) -> TensorBoardLogger:
        done = self._start.rounds_done if axis == "rounds" else self._start.align_steps
        purge = done + 1 if self._start.is_resumed else None
        return TensorBoardLogger(self._folder, name="", version=axis, default_hp_metric=False, purge_step=purge)
