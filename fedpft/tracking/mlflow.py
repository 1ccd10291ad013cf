"""A run in MLflow, the only importer of mlflow: a tracking server's, or a database in the run's output folder.

    output_dir/mlflow/mlflow.db, artifacts/      mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow/mlflow.db

MLflow gives a run an id of its own; the tag `fedpft.run_id` is how a resumed run finds it again.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import MLFlowLogger

from fedpft.config import Config, reported_name
from fedpft.config.flat import flat_settings
from fedpft.config.tracking import shown_url
from fedpft.tracking.loggers import Axis, LoggerTracker, Start
from fedpft.tracking.names import result_metrics

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

FOLDER = "mlflow"
SENT_FILES = ("adapter", "result")
"""Of a run's files; never a weight of FM or sub-FM."""
RUN_TAG = "fedpft.run_id"
ALWAYS_LOGGED: Mapping[Axis, str] = {"rounds": "server/lr", "alignments": "align/step_loss"}
"""Axis -> a metric that each of its steps has: its newest step is how far MLflow has got."""


class MLflowTracker(LoggerTracker):
    """A `Tracker`: one MLflow run with settings, numbers, the newest figures, adapter and result."""

    def __init__(self, config: Config, output_dir: Path, start: Start) -> None:
        self._config, self._start, self._folder = config, start, output_dir.resolve() / FOLDER
        own = f"sqlite:///{self._folder / 'mlflow.db'}"
        self._uri = config.tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or own
        self._is_own = self._uri == own
        self._figures: dict[str, Figure] = {}
        self._newest: dict[Axis, int] = {}
        super().__init__(self._run, {FOLDER: str(self._folder) if self._is_own else shown_url(self._uri)})

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Keep it: the newest goes with the result."""
        self._figures[name] = figure

    def _log(self, axis: Axis, metrics: Mapping[str, float], step: int) -> None:
        """Log what MLflow does not have: it takes nothing back, and a step done again would stand there twice."""
        self.logger(axis)
        if step > self._newest.get(axis, -1):
            super()._log(axis, metrics, step)

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Log the result's numbers as `result/*`, and the artifacts."""
        logger = self.logger("rounds")
        logger.log_metrics(result_metrics(result), result.get("rounds"))
        for name, figure in self._figures.items():
            logger.experiment.log_figure(logger.run_id, figure, f"{name}.html")
        for name in SENT_FILES:
            if name in files and files[name].is_dir():
                logger.experiment.log_artifacts(logger.run_id, str(files[name]), name)
            elif name in files:
                logger.experiment.log_artifact(logger.run_id, str(files[name]))
        super().finish(result, files)

    def _run(self, axis: Axis) -> MLFlowLogger:
        """Return the logger of both axes, for a new run or the one that goes on."""
        if self._loggers:
            return next(iter(self._loggers.values()))  # type: ignore[return-value]
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # of its use, over the network
        import mlflow

        for name in ("mlflow", "alembic", MLFlowLogger.__module__):
            logging.getLogger(name).setLevel(logging.ERROR)  # they tell of every table that they create
        tracking = self._config.tracking
        place: dict[str, Any] = {"experiment_name": tracking.project, "tracking_uri": self._uri}
        if self._is_own:
            (self._folder / "artifacts").mkdir(parents=True, exist_ok=True)
            place["artifact_location"] = (self._folder / "artifacts").as_uri()
        if self._start.is_resumed and (found := self._find(mlflow.MlflowClient(self._uri))):
            logger = MLFlowLogger(**place, run_id=found)
            logger.experiment.update_run(found, status="RUNNING")
            for each, name in ALWAYS_LOGGED.items():
                points = logger.experiment.get_metric_history(found, name)
                self._newest[each] = max((point.step for point in points), default=-1)
            return logger
        tags = {"fedpft.method": reported_name(self._config.method, self._config.align)}
        tags |= {f"fedpft.tag.{tag}": "true" for tag in tracking.tags}
        own = {RUN_TAG: self._start.run_id, "fedpft.group": tracking.group, "fedpft.task": self._config.task.name}
        tags |= {name: value for name, value in own.items() if value}
        logger = MLFlowLogger(**place, run_name=self._config.name, tags=tags)
        logger.log_hyperparams(flat_settings(asdict(self._config.shown())))
        return logger

    def _find(self, client: Any) -> str | None:
        """Return MLflow's id of the run that goes on, if it knows it."""
        experiment = client.get_experiment_by_name(self._config.tracking.project)
        if experiment is None or not self._start.run_id:
            return None
        wanted = f"tags.`{RUN_TAG}` = '{self._start.run_id}'"
        return next((run.info.run_id for run in client.search_runs([experiment.experiment_id], wanted)), None)
