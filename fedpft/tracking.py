"""Where a run's numbers go: always `rounds.jsonl`, and Weights & Biases unless `tracking.wandb=disabled`.

The only importer of wandb, and only when it is used. All it writes lies in the run's output folder::

    output_dir/rounds.jsonl                  one JSON object a round
    output_dir/wandb/offline-run-*/          send it later with `wandb sync FOLDER`

A resumed run goes on in the same file and as the same W&B run. Offline it leaves one W&B folder each time it was
started, all with the run's id; `wandb sync` joins them in order.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from fedpft.config import Config, ConfigError, TrackingConfig
from fedpft.metric_names import wandb_definitions, wandb_metrics
from fedpft.metrics import Goal

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

CLIENT_COLUMNS = ("client_id", "num_examples", "loss", "seconds", "actor")

ARTIFACT_TYPES = {"adapter": "model", "result": "result"}
"""Files of a run that become W&B artifacts -> their type; no other file, the sub-FM included, is handed to W&B."""

_INIT_TIMEOUT_SECONDS = 30
_FINISH_TIMEOUT_SECONDS = 300


class Tracker(Protocol):
    """Receives the numbers of one run, in order, from the driver's process."""

    @property
    def locations(self) -> Mapping[str, str]:
        """What is recorded -> the file, folder or URL where it is."""

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Take the line of one round: `round, clients, train_loss, lr, seconds`, in evaluation rounds `fm, sub_fm`.

        Round 0 has only what was evaluated before round 1.
        """

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take one row for each client of a round, with the keys `CLIENT_COLUMNS`."""

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Take a point of an alignment's curve: `align/step`, which counts on over a whole run, and other `align/*`."""

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Take the newest state of a plotly figure."""

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """End the run with its `result.json` and the files written, by name (`adapter`, `result`)."""

    def fail(self) -> None:
        """End a run that did not get to its result; what was logged stays."""


class JsonlTracker:
    """Writes `rounds.jsonl`, complete to the last round at every moment; a resumed run goes on in the same file."""

    def __init__(self, output_dir: Path) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        self._path = output_dir / "rounds.jsonl"
        self._file = self._path.open("a", encoding="utf-8")

    @property
    def locations(self) -> Mapping[str, str]:
        """The file."""
        return {"rounds": str(self._path)}

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Append one line; there is none for round 0."""
        if record["round"] == 0:
            return
        line = json.dumps(dict(record), default=lambda value: value.tolist())  # NumPy's numbers and arrays
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # before the round's checkpoint, which counts on it

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ignore: a line a round, no more."""

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Ignore."""

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Ignore."""

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Close the file."""
        self._file.close()

    def fail(self) -> None:
        """Close the file; what no longer fits on the disk is lost, and no reason to hide why the run failed."""
        with suppress(OSError):
            self._file.close()


def check_tracking(tracking: TrackingConfig) -> None:
    """Look whether W&B has an API key if it will need one; nothing is sent, and on a terminal it may ask for the key.

    Raises:
        ConfigError: `online` without a key.

    """
    if tracking.wandb != "online":
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


class WandbTracker:
    """One W&B run, silent, with its folder in the run's output folder.

    Raises:
        ConfigError: W&B cannot be reached or refuses the run (no API key, no network, no such entity), in one line.

    """

    def __init__(self, config: Config, output_dir: Path, run_id: str | None = None, goal: Goal = "max") -> None:
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
        )
        try:
            wandb.setup(wandb.Settings(silent=True))
            self._run: Any = wandb.init(
                mode=tracking.wandb,
                project=tracking.project,
                entity=tracking.entity,
                group=tracking.group,
                tags=tracking.tags,
                name=config.name,
                id=run_id,
                resume="allow",
                config=asdict(config),
                dir=output_dir,
                reinit="create_new",
                settings=settings,
            )
        except wandb.Error as error:
            raise _refusal(tracking, error) from None
        for name, step, summary in wandb_definitions(goal):
            self._run.define_metric(name, step_metric=step, summary=summary)
        self._name = re.sub(r"[^\w.-]+", "-", config.name)
        self._table = wandb.Table(columns=["round", *CLIENT_COLUMNS], log_mode="INCREMENTAL")

    @property
    def locations(self) -> Mapping[str, str]:
        """The run's page when online, else its folder."""
        return {"wandb": self._run.url or str(Path(self._run.dir).parent)}

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Log the record's numbers under their W&B names."""
        self._run.log({"round": record["round"], **wandb_metrics(record)})

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the spread of the clients' losses, and add the rows to the run's table of clients."""
        for row in rows:
            self._table.add_data(round_index, *(row[column] for column in CLIENT_COLUMNS))
        losses = [row["loss"] for row in rows]
        spread = {"mean": fmean(losses), "min": min(losses), "max": max(losses)}
        metrics = {f"clients/loss_{name}": value for name, value in spread.items()}
        self._run.log({"round": round_index, **metrics, "clients/table": self._table})

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Log the numbers as they are."""
        self._run.log(dict(metrics))

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Log it as an interactive panel, which steps through the states."""
        import wandb

        self._run.log({name: wandb.Plotly(figure)})

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Put `result` into the summary as `result/*`, log the artifacts and wait for the upload (minutes at most)."""
        import wandb

        self._run.summary.update({f"result/{key}": value for key, value in result.items()})
        for key in ARTIFACT_TYPES.keys() & files.keys():
            artifact = wandb.Artifact(f"{self._name}-{key}", type=ARTIFACT_TYPES[key])
            add = artifact.add_dir if files[key].is_dir() else artifact.add_file
            add(str(files[key]), policy="immutable")  # no second copy on this disk
            self._run.log_artifact(artifact)
        try:
            self._run.finish()
        except TimeoutError:
            folder = Path(self._run.dir).parent
            warnings.warn(
                f"W&B: upload unfinished after {_FINISH_TIMEOUT_SECONDS} s; send the rest: wandb sync {folder}",
                stacklevel=2,
            )

    def fail(self) -> None:
        """Mark the run as failed; an upload that hangs does not hide why."""
        with suppress(TimeoutError):
            self._run.finish(exit_code=1)


class TrackerGroup:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    @property
    def locations(self) -> Mapping[str, str]:
        """All of them."""
        return {name: place for tracker in self._trackers for name, place in tracker.locations.items()}

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.log_round(record)

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.log_clients(round_index, rows)

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.log_stage(metrics)

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.log_figure(name, figure)

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.finish(result, files)

    def fail(self) -> None:
        """Tell each."""
        for tracker in self._trackers:
            tracker.fail()


def make_trackers(
    config: Config, output_dir: Path, run_id: str | None = None, goal: Goal = "max", more: Sequence[Tracker] = ()
) -> Tracker:
    """Return the trackers that `config.tracking` asks for, and `more`, as one; W&B first, it may refuse.

    A W&B run of this id is continued if there is one; without an id it is a new one. `goal`: which way the task's
    primary metric is better.
    """
    online = [] if config.tracking.wandb == "disabled" else [WandbTracker(config, output_dir, run_id, goal)]
    return TrackerGroup([JsonlTracker(output_dir), *online, *more])
