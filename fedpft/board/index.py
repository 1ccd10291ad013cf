"""All runs and sweeps below some folders, kept up to date by looking; nothing is written, touched or locked.

    look: walk the folders (seldom) -> times of the known files (often) -> what changed has a new version
    read: settings and results first, then the rounds, a piece at a time, until the time for it is used up

So the first answer needs no more than file times, however long the runs are, and the rest follows.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedpft.board.cluster import Cluster
from fedpft.board.lines import as_object, open_plain
from fedpft.board.run import BoardRun
from fedpft.board.sweep import BoardSweep
from fedpft.config.trials import SETTINGS_FILE, STATE_FOLDER, TRIALS_FOLDER
from fedpft.storage.lock import HOLDER_FILE
from fedpft.storage.output import ROUNDS_FILE

_LOOK_SECONDS, _WALK_SECONDS = 0.5, 3.0
"""At least, between two looks at the known files and two walks for new ones."""
_SHARE, _LONGEST_SECONDS = 5, 15.0
"""A slow file system is left alone for so many times as long as a look took, but not longer than this."""
_SETTLED = 5
"""Runs that have ended are looked at every so many looks."""


class Index:
    """What the board knows.

    Args:
        folders: each a run's, or one with runs anywhere below it; need not exist yet.
        clock: seconds since 1970.
        cluster: whose jobs are shown beside them.

    """

    def __init__(
        self, folders: Sequence[Path], clock: Callable[[], float] = time.time, cluster: Cluster | None = None
    ) -> None:
        self.folders = [folder.resolve() for folder in folders]
        self.cluster = cluster
        self.lock = threading.RLock()
        """Held by who looks, and by who reads what was found."""
        self.version = 0
        """Grows with everything that people see."""
        self._clock = clock
        self._runs: dict[Path, BoardRun] = {}
        self._sweeps: dict[Path, BoardSweep] = {}
        self._next_look = self._next_walk = 0.0
        self._looks = 0

    @property
    def now(self) -> float:
        """By the board's clock."""
        return self._clock()

    @property
    def runs(self) -> list[BoardRun]:
        """All of them."""
        return list(self._runs.values())

    @property
    def sweeps(self) -> list[BoardSweep]:
        """All of them."""
        return list(self._sweeps.values())

    def run(self, key: str) -> BoardRun | None:
        """Return the run of a key, if there is one."""
        return next((run for run in self._runs.values() if run.key == key), None)

    def run_in(self, folder: Path | None) -> BoardRun | None:
        """Return the run of a folder, if there is one."""
        return self._runs.get(folder) if folder else None

    def sweep(self, key: str) -> BoardSweep | None:
        """Return the sweep of a key, if there is one."""
        return next((sweep for sweep in self._sweeps.values() if sweep.key == key), None)

    def trials(self, sweep: BoardSweep) -> list[BoardRun]:
        """Return a sweep's runs, by name."""
        return sorted((run for run in self._runs.values() if sweep.owns(run.folder)), key=lambda run: run.title)

    def look(self) -> None:
        """Look whether anything is new, unless that was done a moment ago."""
        if self.cluster:
            self.cluster.look()
        with self.lock:
            start = time.monotonic()
            if start >= self._next_walk:
                self._walk()
                walked = time.monotonic()
                self._next_walk = walked + _rest(_WALK_SECONDS, walked - start)
            if (start := time.monotonic()) >= self._next_look:
                self._look_at_files()
                looked = time.monotonic()
                self._next_look = looked + _rest(_LOOK_SECONDS, looked - start)

    def read(self, seconds: float, first: Sequence[BoardRun] = ()) -> bool:
        """Read what was not read yet, `first` these runs', as long as there is time; return whether all is read."""
        end = time.monotonic() + seconds
        with self.lock:
            others = sorted(self._runs.values(), key=lambda run: -run.written)
            for step, runs in (
                (self._learn, first),
                (self._follow, first),
                (self._learn, others),
                (self._follow, others),
            ):
                if not all(step(run, end) for run in runs):
                    return False
        return True

    def _learn(self, run: BoardRun, end: float) -> bool:
        """Read a run's settings and result, unless the time is over; return whether they are read."""
        if run.is_read:
            return True
        if time.monotonic() >= end:
            return False
        _ = run.settings, run.result
        self._changed(run)
        return True

    def _follow(self, run: BoardRun, end: float) -> bool:
        """Read a run's rounds, until the time is over; return whether all are read."""
        if run.is_followed:
            return True
        while time.monotonic() < end:
            if not run.follow():
                self._changed(run)
                return True
        return False

    def _changed(self, run: BoardRun) -> None:
        self.version += 1
        run.version = self.version

    def _walk(self) -> None:
        runs, sweeps = set(), set()
        for root in self.folders:
            for kind, folder in _found(root):
                if kind == "sweep":
                    sweeps.add(folder)
                    if folder not in self._sweeps:
                        self._sweeps[folder] = BoardSweep(folder, self._title(root, folder))
                        self.version += 1
                else:
                    runs.add(folder)
                    if folder not in self._runs:
                        self._runs[folder] = BoardRun(folder, self._title(root, folder))
                        self._next_look = 0.0
        for gone in self._runs.keys() - runs:
            del self._runs[gone]
            self.version += 1
        for gone in self._sweeps.keys() - sweeps:
            del self._sweeps[gone]
            self.version += 1

    def _look_at_files(self) -> None:
        now = self.now
        self._looks += 1
        errors: dict[Path, str] = {}
        for sweep in self._sweeps.values():
            self.version += sweep.look(now)
            errors |= {sweep.folder / TRIALS_FOLDER / name: error for name, error in sweep.errors.items()}
        for run in list(self._runs.values()):
            error = errors.get(run.folder)
            is_settled = run.version and run.state in ("finished", "stopped", "failed") and error == run.error
            if is_settled and self._looks % _SETTLED:
                continue
            if run.look(now, error) or not run.version:
                self._changed(run)
            if not run.is_there:
                del self._runs[run.folder]
                self.version += 1

    def _title(self, root: Path, folder: Path) -> str:
        inside = folder.relative_to(root).as_posix()
        if inside == ".":
            return root.name
        return inside if len(self.folders) == 1 else f"{root.name}/{inside}"


def _rest(least: float, took: float) -> float:
    return min(_LONGEST_SECONDS, max(least, _SHARE * took))


def _found(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the folders of runs and sweeps at or below a folder; links are not followed."""
    for place, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        folder = Path(place)
        if SETTINGS_FILE in files and TRIALS_FOLDER in below:
            below[:] = [name for name in below if name != STATE_FOLDER]
            yield "sweep", folder
        elif ROUNDS_FILE in files or {"config.yaml", "result.json"} <= set(files) or _is_begun(folder, files):
            below.clear()  # what a run holds is no run
            yield "run", folder


def _is_begun(folder: Path, files: Sequence[str]) -> bool:
    """Whether a run holds a folder that has nothing of it yet."""
    if HOLDER_FILE not in files:
        return False
    try:
        with open_plain(folder / HOLDER_FILE) as file:
            return (as_object(file.read(2**16)) or {}).get("what") == "run"
    except OSError:
        return False
