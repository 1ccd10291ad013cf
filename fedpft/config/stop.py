"""When a run ends before its last round, by its evaluations."""

from dataclasses import dataclass
from math import isfinite

from fedpft.config.checks import require, require_non_negative


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """A run that ends by its evaluations; without `patience` and `target` it does all rounds."""

    metric: str | None = None
    """The metric of the plugged-in FM that decides: one of those that the run evaluates, e.g. `macro_f1`, or on another
    evaluation set `mismatched/accuracy`. null takes the task's primary one. The table of metrics says which way is
    better."""
    patience: int | None = None
    """Stop after so many evaluations in a row that were no better than the best before them. null never stops."""
    min_delta: float = 0.0
    """With `patience`, by how much a value must be better to count as better, in the metric's own unit (0.01 of an
    accuracy is one percentage point)."""
    target: float | None = None
    """Stop at the first evaluation that is at least as good as this, in the metric's own unit. null never stops."""

    def __post_init__(self) -> None:
        ok = self.patience is None or self.patience > 0
        require(ok, "stop.patience", self.patience, "null or an integer > 0")
        require_non_negative("stop", self, "min_delta")
        ok = self.target is None or isfinite(self.target)
        require(ok, "stop.target", self.target, "null or a finite number")

    @property
    def is_active(self) -> bool:
        """Whether anything can stop the run."""
        return self.patience is not None or self.target is not None
