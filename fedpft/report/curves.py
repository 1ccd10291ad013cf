"""Send the alignments' loss curves to the tracker, on their way to the screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedpft.federated.messages import ClientUpdate
from fedpft.federated.observer import RunObserver
from fedpft.tracking import Tracker


class AlignmentCurves:
    """An observer that passes everything on and logs each step of an alignment as `align/step`, `align/step_loss`.

    Args:
        observer: hears everything.
        tracker: takes the curve.
        steps: points that the run's curve already has.

    """

    def __init__(self, observer: RunObserver, tracker: Tracker, steps: int = 0) -> None:
        self._observer, self._tracker = observer, tracker
        self._aligning, self.steps = False, steps

    def stage(self, title: str) -> None:
        """Pass on, and note whether the new stage is an alignment."""
        self._aligning = title.startswith("align")
        self._observer.stage(title)

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Pass on; log an alignment's loss."""
        if self._aligning and "loss" in metrics:
            self.steps += 1
            self._tracker.log_stage({"align/step": self.steps, "align/step_loss": metrics["loss"]})
        self._observer.progress(done, total, metrics)

    def round_started(self, round_index: int, num_rounds: int, client_ids: Sequence[int]) -> None:
        """Pass on."""
        self._observer.round_started(round_index, num_rounds, client_ids)

    def client_finished(self, update: ClientUpdate) -> None:
        """Pass on."""
        self._observer.client_finished(update)

    def round_finished(self, record: Mapping[str, Any]) -> None:
        """Pass on."""
        self._observer.round_finished(record)
