"""The trackers that `tracking.to` names, and all of a run's trackers as one.

What is not in the table has its own way: W&B works in a process of its own, the others in a thread (`tracking.queued`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from fedpft.config import Config, ConfigError, TrackingConfig
from fedpft.config.plugins import make_part
from fedpft.metrics.table import Goal
from fedpft.tracking.loggers import Start
from fedpft.tracking.queued import Queued
from fedpft.tracking.trackers import JsonlTracker, Tolerated, Tracker, TrackerGroup, warn_of


@dataclass(frozen=True)
class Service:
    """A tracker by name."""

    title: str
    place: str
    """`module:name` of what makes it of (config, output_dir, start); imported when it is asked for."""
    packages: tuple[str, ...] = ()
    """Of which one must be installed; the extra of the service's name does."""


SERVICES = {
    "tensorboard": Service("TensorBoard", "tensorboard:TensorBoardTracker", ("tensorboard", "tensorboardX")),
    "mlflow": Service("MLflow", "mlflow:MLflowTracker", ("mlflow",)),
    "trackio": Service("Trackio", "trackio:TrackioTracker", ("trackio",)),
    "csv": Service("csv", "csv:csv_tracker"),
}
"""Name in `tracking.to` -> what it is, but for `wandb`."""


def check_trackers(tracking: TrackingConfig) -> None:
    """Look whether the trackers that are asked for can be had; nothing is made or sent.

    Raises:
        ConfigError: one is not installed, or W&B is to be `online` without a key.

    """
    check_installed(tracking)
    from fedpft.tracking.wandb import check_tracking

    check_tracking(tracking)


def check_installed(tracking: TrackingConfig) -> None:
    """Look whether what is asked for is installed here.

    Raises:
        ConfigError: it is not; the message says how to install it.

    """
    for name in tracking.services:
        service = SERVICES.get(name)
        if service and service.packages and not any(find_spec(package) for package in service.packages):
            found = f"tracking.to: found {name!r}, which is not installed"
            raise ConfigError(f"{found}, allowed: without it, or after pip install 'fedpft[{name}]'")


def make_trackers(
    config: Config,
    output_dir: Path,
    run_id: str | None = None,
    goal: Goal = "max",
    more: Sequence[Tracker] = (),
    *,
    rounds_done: int = 0,
    align_steps: int = 0,
) -> Tracker:
    """Return the trackers that `config.tracking` asks for, and `more`, as one; all but `rounds.jsonl` may fail.

    Args:
        config: the run's.
        output_dir: its folder.
        run_id: a run of this id is continued where there is one; None: a new one.
        goal: which way the task's primary metric is better.
        more: that the caller has.
        rounds_done: after which round a run goes on.
        align_steps: points that its alignments' curve has by then.

    Raises:
        ConfigError: W&B refuses the run, or a tracker of others cannot be made.

    """
    start = Start(run_id=run_id, rounds_done=rounds_done, align_steps=align_steps)
    asked: list[Tracker] = []
    for name in config.tracking.services:
        title, make = _maker(name, config, output_dir, start, goal)
        try:
            asked.append(Tolerated(make(), title))
        except ConfigError:
            raise
        except Exception as error:
            warn_of(title, error)
    others = [Tolerated(tracker, type(tracker).__name__) for tracker in more]
    others += [Tolerated(make_part("tracker", name, config, output_dir), name) for name in config.tracking.also]
    return TrackerGroup([JsonlTracker(output_dir), *asked, *others])


def _maker(name: str, config: Config, output_dir: Path, start: Start, goal: Goal) -> tuple[str, Callable[[], Tracker]]:
    """Return what a service is called, and how its tracker is made."""
    if name == "wandb":
        from fedpft.tracking.wandb import NAME, WandbTracker

        return NAME, lambda: WandbTracker(config, output_dir, start.run_id, goal)
    service = SERVICES[name]

    def make() -> Tracker:
        module, _, attribute = service.place.partition(":")
        return Queued(getattr(import_module(f"fedpft.tracking.{module}"), attribute)(config, output_dir, start))

    return service.title, make
