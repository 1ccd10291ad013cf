"""PURE: whether a run ends before its last round, by what its evaluations found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedpft.config import StopConfig
from fedpft.metrics.table import Goal, is_better, metric_row


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Watches one metric of the plugged-in FM. All that it remembers is in the state that it returns, plain JSON."""

    config: StopConfig
    metric: str
    """`config.metric`, or the task's primary one."""

    @property
    def goal(self) -> Goal:
        """Which way the metric is better."""
        return metric_row(self.metric).goal

    def watch(self, state: Mapping[str, Any], round_index: int, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state after one more evaluation.

        Args:
            state: after the one before; empty before the first.
            round_index: of the evaluation.
            evaluation: with `metrics`, those of the `fm` by name.

        Returns:
            `best`, the best value so far, which others have to beat by more than `min_delta`, and its `round`;
            `num_worse`: evaluations since; `reason`, where the run is to stop: `target` or `patience`.

        """
        value = evaluation["metrics"]["fm"][self.metric]
        state = {"best": value, "round": round_index, "num_worse": 0} if self._is_better(value, state) else {
            **state, "num_worse": state["num_worse"] + 1,
        }  # fmt: skip
        target, patience = self.config.target, self.config.patience
        if target is not None and (value == target or is_better(value, target, self.goal)):
            return state | {"reason": "target"}
        if patience is not None and state["num_worse"] >= patience:
            return state | {"reason": "patience"}
        return state

    def record(self, state: Mapping[str, Any], num_rounds: int) -> dict[str, Any]:
        """Return `stopped` of `result.json`, given the last state and the planned rounds; empty if nothing stopped."""
        if "reason" not in state:
            return {}
        limit = {name: getattr(self.config, name) for name in ("patience", "min_delta", "target")}
        return {"stopped": {"metric": self.metric, **state, **limit, "planned_rounds": num_rounds}}

    def _is_better(self, value: float, state: Mapping[str, Any]) -> bool:
        if not state:
            return True
        margin = self.config.min_delta if self.goal == "max" else -self.config.min_delta
        return is_better(value, state["best"] + margin, self.goal)
