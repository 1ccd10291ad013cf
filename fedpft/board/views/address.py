"""Which page an address names, and of which runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedpft.board.index import Index
from fedpft.board.run import BoardRun
from fedpft.board.views.choice import Choice
from fedpft.board.views.compare import compare_page, compared_runs
from fedpft.board.views.page import Page
from fedpft.board.views.run import run_page
from fedpft.board.views.runs import runs_page, visible
from fedpft.board.views.sweep import sweep_page, sweeps_page


@dataclass(frozen=True, kw_only=True)
class View:
    """A page before it is made."""

    runs: Sequence[BoardRun]
    """Whose files it shows, and which are to be read first."""
    make: Callable[[], Page]


def view_of(index: Index, path: str, choice: Choice) -> View | None:
    """Return what an address names; None: nothing."""
    kind, _, key = path.strip("/").partition("/")
    if kind == "run":
        run = index.run(key)
        return View(runs=[run], make=lambda: run_page(run)) if run else None
    if kind == "sweep":
        sweep = index.sweep(key)
        return View(runs=index.trials(sweep), make=lambda: sweep_page(index, sweep)) if sweep else None
    if kind == "compare":
        return View(runs=compared_runs(index, choice), make=lambda: compare_page(index, choice))
    if kind == "sweeps":
        return View(runs=[], make=lambda: sweeps_page(index))
    return View(runs=visible(index, choice), make=lambda: runs_page(index, choice)) if kind == "" else None
