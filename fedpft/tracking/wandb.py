"""A run in Weights & Biases; wandb is imported when it is used.

All of it lies in the run's output folder::

    output_dir/wandb/offline-run-*/          send it later with `wandb sync FOLDER`
    output_dir/wandb/offline-run-*/files/    the run's files, copies of adapter and result among them

The copies are what W&B sends, as artifacts and as files of the run. W&B knows an artifact's files by their whole path,
the run's files by their place in its folder. So of a folder that was moved `wandb sync` sends the run's files, and
leaves the artifacts out; `fedpft sync` sends them.

A resumed run goes on as the same W&B run. Offline it leaves one folder each time it was started, all with the run's id;
`wandb sync` joins them in order.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpft.config import Config, ConfigError, TrackingConfig
from fedpft.config.tracking import shown_url
from fedpft.metrics.table import Goal
from fedpft.tracking.lineage import tags
from fedpft.tracking.names import CLIENT_COLUMNS, STEP_METRICS, kept_in_summary, logged_metrics, loss_spread
from fedpft.tracking.wandb_artifacts import log_artifacts
from fedpft.tracking.wandb_variables import tell_what_is_not_followed

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

DEFAULT_JOB_TYPE = "run"

NAME = "Weights & Biases"

_INIT_TIMEOUT_SECONDS = 30
_FINISH_TIMEOUT_SECONDS = 300


def check_tracking(tracking: TrackingConfig) -> None:
    """Look whether W&B has an API key if it will need one; nothing is sent, and on a terminal it may ask for the key.

    Raises:
        ConfigError: `online` without a key.

    """
    tell_what_is_not_followed(tracking)
    if tracking.wandb_mode != "online":
        return
    import wandb  # here, so that other runs do not pay for it

    try:
        wandb.setup(wandb.Settings(silent=True))
        if not wandb.login(verify=False):
            raise wandb.Error("no API key")
    except wandb.Error as error:
        raise _refusal(tracking, error) from None


def _refusal(tracking: TrackingConfig, error: Exception) -> ConfigError:
    line = str(error).splitlines()[0].rstrip(".")
    message = f"tracking.wandb: found {tracking.wandb!r}, but W&B says: {line}; allowed without it:"
    return ConfigError(f"{message} offline, disabled")


def destination(tracking: TrackingConfig) -> str:
    """Return where a run is sent: server, owner, project."""
    import wandb

    server = str(wandb.setup(wandb.Settings(silent=True)).settings.base_url)
    return "/".join([shown_url(server), tracking.entity or "", tracking.project])


class WandbTracker:
    """A `Tracker`: one W&B run, silent, with its folder in the run's output folder.

    A `replay` tells of a run that is over: what W&B does not take is an error then, and this machine is not described.

    Raises:
        ConfigError: W&B refuses the run (no API key, no such entity), in one line. Out of reach it is recorded offline.

    """

    def __init__(
        self,
        config: Config,
        output_dir: Path,
        run_id: str | None = None,
        goal: Goal = "max",
        *,
        replay: bool = False,
    ) -> None:
        import wandb  # here, so that a run without W&B does not pay for it

        output_dir.mkdir(parents=True, exist_ok=True)
        tracking = config.tracking
        os.environ["WANDB_DATA_DIR"] = str(output_dir / "wandb")  # files staged for upload stay with the run
        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            init_timeout=_INIT_TIMEOUT_SECONDS,
            finish_timeout=_FINISH_TIMEOUT_SECONDS,
            finish_timeout_raises=True,
            x_disable_stats=replay,
            x_disable_machine_info=replay,
        )
        self._replay = replay
        given: dict[str, Any] = {
            "project": tracking.project,
            "entity": tracking.entity,
            "group": tracking.group,
            "job_type": tracking.job_type or DEFAULT_JOB_TYPE,
            "tags": tags(config),
            "name": config.name,
            "id": run_id,
            "resume": "allow",
            "config": asdict(config.shown()),
            "dir": output_dir,
            "reinit": "create_new",
            "settings": settings,
        }
        wandb.setup(wandb.Settings(silent=True))
        try:
            self._run: Any = wandb.init(mode=tracking.wandb, **given)
        except wandb.Error as error:
            if tracking.wandb != "online":
                raise
            if isinstance(error, wandb.errors.AuthenticationError | wandb.errors.UsageError):
                raise _refusal(tracking, error) from None
            if replay:
                raise
            self._run = wandb.init(mode="offline", **given)
            folder = Path(self._run.dir).parent
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"{NAME}: {reason}; recorded offline, send it later: wandb sync {folder}", stacklevel=2)
        for names, step in STEP_METRICS.items():
            self._run.define_metric(names, step_metric=step)
        self._goal, self._known = goal, set[str]()
        self._config = config
        self._table = wandb.Table(columns=["round", *CLIENT_COLUMNS], log_mode="INCREMENTAL")

    @property
    def locations(self) -> Mapping[str, str]:
        """The run's page when online, else its folder."""
        return {"wandb": self._run.url or str(Path(self._run.dir).parent)}

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Log the record's numbers under their W&B names."""
        self._log({"round": record["round"], **logged_metrics(record)})

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the spread of the clients' losses, and add the rows to the run's table of clients."""
        for row in rows:
            self._table.add_data(round_index, *(row[column] for column in CLIENT_COLUMNS))
        metrics = loss_spread([row["loss"] for row in rows])
        self._log({"round": round_index, **metrics, "clients/table": self._table})

    def log_past(self, record: Mapping[str, Any], figures: Mapping[str, "Figure"]) -> None:
        """Log a round of a run that is over, as the step of its number: W&B takes each step once."""
        import wandb

        spread = loss_spread(record.get("client_losses", ()))
        shown = {name: wandb.Plotly(figure) for name, figure in figures.items()}
        self._log({"round": record["round"], **logged_metrics(record), **spread, **shown}, step=record["round"])

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Log the numbers as they are."""
        self._log(metrics)

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Log it as an interactive panel, which steps through the states."""
        import wandb

        self._run.log({name: wandb.Plotly(figure)})

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Put `result` into the summary as `result/*`, log the artifacts and wait for the upload (minutes at most)."""
        self._run.summary.update({f"result/{key}": value for key, value in result.items()})
        try:
            log_artifacts(self._run, self._config, result, files)
        except Exception as error:  # of a disk, a cache in the home folder; all else is there
            if self._replay:
                raise
            lines = str(error).strip().splitlines()
            reason = ": ".join([type(error).__name__, *lines[:1]])
            warnings.warn(f"{NAME} failed, its run has not all artifacts: {reason}", stacklevel=2)
        try:
            self._run.finish()
        except TimeoutError:
            if self._replay:
                raise
            folder = Path(self._run.dir).parent
            warnings.warn(
                f"W&B: upload unfinished after {_FINISH_TIMEOUT_SECONDS} s; send the rest: wandb sync {folder}",
                stacklevel=2,
            )

    def fail(self) -> None:
        """Mark the run as failed; an upload that hangs does not hide why, nor does a W&B that has died."""
        import wandb

        try:
            with suppress(TimeoutError):
                self._run.finish(exit_code=1)
        except Exception:
            with suppress(Exception):
                wandb.teardown()  # which would fail at the end of the process, with a traceback

    def stop(self) -> None:
        """End a replay of a run that has no result, as failed; wait for the upload."""
        self._run.finish(exit_code=1)

    def _log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log values; the first of a metric is told what the summary keeps of it."""
        for name in values.keys() - self._known:
            if kept := kept_in_summary(name, self._goal):
                axis = next(axis for names, axis in STEP_METRICS.items() if name.startswith(names.rstrip("*")))
                self._run.define_metric(name, step_metric=axis, summary=kept)
        self._known |= values.keys()
        self._run.log(dict(values), step=step)
