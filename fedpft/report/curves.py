"""Send to the tracker what develops over a run, on its way to the screen: losses of alignments, the fidelity."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedpft.federated.observer import Forwarding, RunObserver
from fedpft.report.fidelity import heat_map
from fedpft.tracking.trackers import Tracker


class Curves(Forwarding):
    """An observer that passes everything on.

    It logs each step of an alignment as `align/step`, `align/step_loss`, and after each measurement of the fidelity
    meter the heat map of all measurements so far as `fidelity/heat_map`.

    Args:
        observer: hears everything.
        tracker: takes the curve.
        steps: points that the run's curve already has.
        past: records of the rounds that the run has done.

    """

    def __init__(
        self, observer: RunObserver, tracker: Tracker, steps: int = 0, past: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        super().__init__(observer)
        self._tracker = tracker
        self._aligning, self.steps = False, steps
        self._measured = [record for record in past if "fidelity" in record]

    def stage(self, title: str) -> None:
        """Pass on, and note whether the new stage is an alignment."""
        self._aligning = title.startswith("align")
        super().stage(title)

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Pass on; log an alignment's loss."""
        if self._aligning and "loss" in metrics:
            self.steps += 1
            self._tracker.log_stage({"align/step": self.steps, "align/step_loss": metrics["loss"]})
        super().progress(done, total, metrics)

    def run_started(self, record: Mapping[str, Any]) -> None:
        """Pass on; begin the heat map."""
        self._log_fidelity(record)
        super().run_started(record)

    def round_finished(self, record: Mapping[str, Any]) -> None:
        """Pass on; add a column to the heat map."""
        self._log_fidelity(record)
        super().round_finished(record)

    def _log_fidelity(self, record: Mapping[str, Any]) -> None:
        if "fidelity" in record:
            self._measured = sorted([*self._measured, record], key=lambda measured: measured["round"])
            self._tracker.log_figure("fidelity/heat_map", heat_map(self._measured))
