"""A sweep as the board knows it: its settings, its trials, and what its scheduler did with them."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from fedpft.board.files import CachedFile, as_settings
from fedpft.board.folder import BoardFolder
from fedpft.board.lines import as_object
from fedpft.board.state import State, state_of
from fedpft.config.trials import SETTINGS_FILE, SUMMARY_FILE, TRIALS_FOLDER


class BoardSweep(BoardFolder):
    """One sweep's folder."""

    def __init__(self, folder: Path, title: str) -> None:
        super().__init__(folder, title)
        self.state: State = "stopped"
        self._settings = CachedFile(folder / SETTINGS_FILE, as_settings)
        self._summary = CachedFile(folder / SUMMARY_FILE, as_object)

    def look(self, now: float) -> bool:
        """Look at the files' times; return whether something is new."""
        before = self.state
        changed = [self._settings.look(), self._summary.look()]
        self.holder.look(now)
        alive = self.holder.alive(now)
        # of an earlier pass until the one that is going on has ended
        has_result = self._summary.stamp is not None and not alive
        self.state = state_of(has_result=has_result, alive=alive, has_failed=False)
        return any(changed) or before != self.state

    @property
    def is_there(self) -> bool:
        """Whether it still has its settings."""
        return self._settings.stamp is not None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The content of sweep.yaml."""
        return self._settings.content

    @property
    def metric(self) -> str:
        """Key of a round's record by which trials are ranked."""
        return str(self.settings.get("metric", "fm"))

    @property
    def search(self) -> str:
        """How its points are chosen."""
        return str(self.settings.get("search", "grid"))

    @property
    def scheduler(self) -> str:
        """Who stops trials early."""
        return str(self.settings.get("scheduler", "none"))

    @property
    def errors(self) -> dict[str, str]:
        """Name of a trial -> why it failed; known when the sweep has ended."""
        if self.state == "running":
            return {}
        trials = self._summary.content.get("trials")
        found = [trial for trial in trials if isinstance(trial, dict)] if isinstance(trials, list) else []
        return {str(trial.get("name")): str(trial["error"]) for trial in found if trial.get("error")}

    @property
    def num_trials(self) -> int | None:
        """All that it will have; None: nobody can tell from its settings."""
        space, seeds = self.settings.get("space"), self.settings.get("seeds")
        if not isinstance(space, dict):
            return None
        grids = [
            len(law["grid"]) for law in space.values() if isinstance(law, dict) and isinstance(law.get("grid"), list)
        ]
        draws = self.settings.get("num_samples", 1) if len(grids) < len(space) else 1
        points = prod(grids) * draws if isinstance(draws, int) else None
        return points and points * max(1, len(seeds) if isinstance(seeds, list) else 0)

    @property
    def rungs(self) -> list[int]:
        """Rounds at which ASHA decides who goes on; nothing for another scheduler."""
        grace, factor = self.settings.get("grace_rounds", 1), self.settings.get("reduction_factor", 3)
        if self.scheduler != "asha" or not isinstance(grace, int) or not isinstance(factor, int) or factor < 2:
            return []
        return [grace * factor**power for power in range(12)]

    def owns(self, run: Path) -> bool:
        """Return whether a run is one of its trials."""
        return run.parent == self.folder / TRIALS_FOLDER
