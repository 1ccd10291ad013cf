"""A run on loggers, Lightning's own where it has one: each axis, rounds and the steps of alignments, has its logger."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fedpft.tracking.names import ROUND, logged_metrics, loss_spread

if TYPE_CHECKING:  # plotly is loaded with the first figure
    from plotly.graph_objects import Figure

Axis = Literal["rounds", "alignments"]

LEFT_OUT = ("round", "align/step")
"""Names of what is the step itself."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins, or goes on."""

    run_id: str | None = None
    """The run's own, the same after every resume."""
    rounds_done: int = 0
    align_steps: int = 0

    @property
    def is_resumed(self) -> bool:
        """Whether trackers may have heard of the run before."""
        return self.rounds_done > 0 or self.align_steps > 0


class StepLogger(Protocol):
    """What is used of Lightning's `Logger`."""

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Take the numbers of a step."""

    def finalize(self, status: str) -> None:
        """Write all that waits; `status` is `success` or `failed`."""


class LoggerTracker:
    """A `Tracker` on loggers, which are made with their first number.

    A client's loss is not in a round's record, but for `client_losses`: their spread is logged with the round.

    Args:
        make: axis -> its logger.
        locations: what is recorded -> where.

    """

    def __init__(self, make: Callable[[Axis], StepLogger], locations: Mapping[str, str]) -> None:
        self._make, self._locations = make, locations
        self._loggers: dict[Axis, StepLogger] = {}

    @property
    def locations(self) -> Mapping[str, str]:
        """Where the loggers write."""
        return self._locations

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Log the round's numbers; its step is the round."""
        self._log("rounds", {**logged_metrics(record), **loss_spread(record.get("client_losses", ()))}, record[ROUND])

    def log_clients(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ignore: loggers take numbers, and the round had them."""

    def log_stage(self, metrics: Mapping[str, float]) -> None:
        """Log the point; its step is the alignment's."""
        self._log("alignments", metrics, int(metrics["align/step"]))

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Ignore."""

    def finish(self, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Write all that waits."""
        self._finalize("success")

    def fail(self) -> None:
        """Write all that waits, and say that the run failed where that can be said."""
        self._finalize("failed")

    def logger(self, axis: Axis) -> Any:
        """Return the logger of an axis."""
        if axis not in self._loggers:
            self._loggers[axis] = self._make(axis)
        return self._loggers[axis]

    def _log(self, axis: Axis, metrics: Mapping[str, float], step: int) -> None:
        self.logger(axis).log_metrics({name: value for name, value in metrics.items() if name not in LEFT_OUT}, step)

    def _finalize(self, status: str) -> None:
        for logger in {id(logger): logger for logger in self._loggers.values()}.values():
            logger.finalize(status)
